"""Compare discovery by every search on the pretend GPU with the same on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from and_dist.distributed.world import open_world
from and_dist.method import faiss_search
from and_dist.method.discovery import SearchOptions, discover
from and_dist.method.memory_bank import MemoryBank
from and_dist.method.neighbour_table import Neighbourhoods
from tests.pretend import stand_ins
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
    # A GPU's tiles are larger, and their sums are in float32.
    torch.testing.assert_close(entropy_N, expected.entropy_N, rtol=0, atol=1e-5)
    assert torch.equal(neighbours_NK, expected.neighbours_NK)
    assert (gpu.launches[INDEX_SEARCH] > 0) == search.startswith("IVF")
    assert gpu.launches[EXACT_SEARCH] > 0


def test_a_process_makes_resources_for_faiss_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_ins.GpuResources, "made", [])
    bank_ND = build_bank(torch.float32)
    with pretend_gpu():
        for search in ("Flat", "IVF64,Flat", "Flat"):
            discover_in(bank_ND.to(CUDA), "cuda", search)
    (resources,) = stand_ins.GpuResources.made
    assert resources.temporary_bytes == faiss_search.GPU_SCRATCH_BYTES
    assert resources.pinned_bytes == 0


def test_more_candidates_than_faiss_selects_are_found_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A query for one of 400 equal rows is asked again for all rows.

    No rows of the shard may come to the CPU for that.
    """
    monkeypatch.setattr(faiss_search, "MOST_ON_GPU", 100)
    monkeypatch.setattr(stand_ins, "MOST_SELECTED", 100)
    bank_ND = build_bank(torch.float32)[:600]
    bank_ND[100:500] = bank_ND[7]
    expected = discover_in(bank_ND, "cpu", "Flat")
    with pretend_gpu() as gpu:
        found = discover_in(bank_ND.to(CUDA), "cuda", "Flat")
        neighbours_NK = found.neighbours_NK.cpu()
    assert gpu.launches["topk"] > 0
    assert not [copy for copy in gpu.blocking_copies if "faiss_search" in copy]
    assert torch.equal(neighbours_NK, expected.neighbours_NK)


@pytest.mark.parametrize("memory_bytes", [1, 300_000, 10**9])
@pytest.mark.parametrize("count", [1, 150, 301])
def test_torch_selects_the_nearest_rows(count: int, memory_bytes: int) -> None:
    random = torch.Generator().manual_seed(1)
    queries_QD, rows_XD = torch.randn(130, 8, generator=random), torch.randn(301, 8)
    found = faiss_search.nearest_by_torch(queries_QD, rows_XD, count, memory_bytes)
    expected = (queries_QD @ rows_XD.T).topk(count, dim=1)
    torch.testing.assert_close(found[0], expected.values)
    torch.testing.assert_close((queries_QD @ rows_XD.T).gather(1, found[1]), expected.values)


@pytest.mark.parametrize("recall", [0.98, 1.0])
def test_a_search_stops_at_the_most_cells_that_a_gpu_probes_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, recall: float
) -> None:
    monkeypatch.setattr(faiss_search, "MOST_ON_GPU", 16)
    monkeypatch.setattr(stand_ins, "MOST_SELECTED", 16)
    bank_ND = build_bank(torch.float32)
    with pretend_gpu(), open_world("cuda", threads=1) as world:
        bank = MemoryBank(bank_ND.to(CUDA), 0, len(bank_ND), 0.5)
        options = SearchOptions(recall)
        found = discover(bank, world, 2, 4, 3, 0.1, "IVF64,Flat", options=options)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(
        "discovery.search=IVF64,Flat: faiss looks at no more than 16 of 64 cells on a GPU, which "
    )
    assert message.endswith(f"of a sample's nearest rows and not {recall:.1%}")
    assert 0.3 < found.recall < 0.97


def test_a_search_that_finds_enough_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with pretend_gpu():
        discover_in(build_bank(torch.float32).to(CUDA), "cuda", "IVF64,Flat")
    assert not caplog.records
