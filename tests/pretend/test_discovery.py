"""Compare discovery by every search on the pretend GPU with the same on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from and_dist.distributed.world import open_world
from and_dist.method.discovery import discover
from and_dist.method.memory_bank import MemoryBank
from and_dist.method.neighbour_table import Neighbourhoods
from tests.pretend.device import pretend_gpu
from tests.pretend.stand_ins import EXACT_SEARCH, INDEX_SEARCH
from tests.pretend.tensors import CUDA


def build_bank(dtype: torch.dtype) -> Tensor:
    """Return rows of unit norm, a hundred of which are equal."""
    random = torch.Generator().manual_seed(0)
    bank_ND = functional.normalize(torch.randn(3011, 128, generator=random), dim=1)
    bank_ND[1000:1100] = bank_ND[7]
    return bank_ND.to(dtype)


def discover_in(bank_ND: Tensor, device: str, search: str) -> Neighbourhoods:
    """Return the neighbourhoods of round 2 of 4: half of all rows are anchors."""
    with open_world(device, threads=1) as world:
        bank = MemoryBank(bank_ND, 0, len(bank_ND), 0.5)
        return discover(bank, world, 2, 4, 3, 0.1, search)


@pytest.mark.parametrize(
    ("search", "dtype"),
    [
        ("Flat", torch.float32),
        ("fused", torch.float32),
        ("IVF64,Flat", torch.bfloat16),
        *(
            pytest.param(search, dtype, marks=pytest.mark.nightly)
            for search, dtype in [
                ("Flat", torch.bfloat16),
                ("fused", torch.bfloat16),
                ("IVF64,Flat", torch.float32),
                ("IVF64,SQfp16", torch.float32),
                ("IVF64,SQfp16", torch.bfloat16),
                ("HNSW16", torch.float32),
            ]
        ),
    ],
)
def test_discovery_equals_that_of_a_cpu(search: str, dtype: torch.dtype) -> None:
    bank_ND = build_bank(dtype)
    expected = discover_in(bank_ND, "cpu", search)
    with pretend_gpu() as gpu:
        found = discover_in(bank_ND.to(CUDA), "cuda", search)
        assert found.neighbours_NK.device == found.entropy_N.device == CUDA
        neighbours_NK, entropy_N = found.neighbours_NK.cpu(), found.entropy_N.cpu()
    torch.testing.assert_close(entropy_N, expected.entropy_N, rtol=0, atol=1e-6)
    assert torch.equal(neighbours_NK, expected.neighbours_NK)
    assert (gpu.launches[INDEX_SEARCH] > 0) == search.startswith("IVF")
    assert gpu.launches[EXACT_SEARCH] > 0
