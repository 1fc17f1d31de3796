"""Keep what a run sets for its whole process from the tests that come after."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.pretend.stand_ins import faiss


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """Restore the numbers of threads, which open_world and the searches set and leave."""
    of_torch, of_faiss = torch.get_num_threads(), faiss.omp_get_max_threads()
    yield
    torch.set_num_threads(of_torch)
    faiss.omp_set_num_threads(of_faiss)
