from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.ranks.pool import RankPool

settings.register_profile("house", deadline=None, max_examples=50, derandomize=True, database=None)
settings.load_profile("house")


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    pool = RankPool()
    yield pool
    pool.close()
