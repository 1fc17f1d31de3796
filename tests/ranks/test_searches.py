"""Every search of discovery against dense float64, and what is refused, at any world size."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from and_dist.distributed.world import World
from and_dist.method import discovery, entropy
from and_dist.method.discovery import SearchOptions, check_discovery, discover
from and_dist.method.faiss_search import ExactSearch, check_search, unit_float32
from and_dist.method.neighbour_search import Nearest, ShardSearch, best_of
from and_dist.method.neighbour_table import Neighbourhoods, check_neighbours
from benchmarks.common.rank_pool import SIZES, RankError, RankPool
from tests import reference
from tests.ranks.scenes import build_scene, shard_of

TEMPERATURE = 0.2
PLENTY = 200_000_000
APPROXIMATE = ("IVF8,Flat", "IVF8,SQfp16", "HNSW16")


def discover_here(
    world: World,
    bank_ND: Tensor,
    search: str,
    num_neighbours: int,
    round_index: int = 4,
    recall: float = 0.98,
    memory_bytes: int = PLENTY,
    temperature: float = TEMPERATURE,
) -> Neighbourhoods:
    bank = shard_of(bank_ND, world)
    options = SearchOptions(recall, memory_bytes)
    return discover(
        bank, world, round_index, 4, num_neighbours, temperature, search, options=options
    )


def dense_table(bank_ND: Tensor, num_neighbours: int) -> list[list[int]]:
    rows = range(len(bank_ND))
    return [reference.nearest(bank_ND.double(), row, num_neighbours) for row in rows]


def with_copies(num_rows: int, copies: int, dtype: torch.dtype = torch.float32) -> Tensor:
    bank_ND = build_scene(num_rows, 1, dtype=dtype).bank_ND
    order_N = torch.randperm(num_rows, generator=torch.Generator().manual_seed(1))
    bank_ND[order_N[:copies]] = bank_ND[7].clone()
    return bank_ND


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("num_rows", "num_neighbours"), [(2, 1), (5, 4), (41, 1), (41, 40), (203, 10)]
)
def test_fused_and_flat_equal_dense(
    ranks: RankPool, size: int, num_rows: int, num_neighbours: int
) -> None:
    unit_ND = build_scene(num_rows, 1).bank_ND
    norm_N = torch.linspace(1, 0.2, num_rows)
    for bank_ND in (unit_ND, unit_ND.float(), unit_ND.float() * norm_N[:, None]):
        expected = dense_table(bank_ND, num_neighbours)
        for search in ("fused", "Flat"):
            found, *_ = ranks.run(size, discover_here, bank_ND, search, num_neighbours)
            assert found.neighbours_NK.tolist() == expected
            assert found.recall == 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("copies", "num_neighbours"), [(2, 1), (30, 3), (120, 3)])
def test_fused_ties_go_to_the_lower_row(
    ranks: RankPool, size: int, copies: int, num_neighbours: int
) -> None:
    bank_ND = with_copies(200, copies)
    found, *_ = ranks.run(size, discover_here, bank_ND, "fused", num_neighbours)
    assert found.neighbours_NK.tolist() == dense_table(bank_ND, num_neighbours)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("search", ["Flat", "fused", "IVF8,Flat"])
def test_narrow_banks_are_searched_exactly(
    ranks: RankPool, dtype: torch.dtype, search: str
) -> None:
    bank_ND = with_copies(203, 5, dtype)
    found, *_ = ranks.run(3, discover_here, bank_ND, search, 3, 4, 1.0)
    assert found.neighbours_NK.tolist() == dense_table(bank_ND, 3)


@pytest.mark.parametrize("search", ["Flat", "fused"])
def test_a_row_of_zeros_is_nearest_to_the_lowest_rows(ranks: RankPool, search: str) -> None:
    bank_ND = build_scene(41, 1).bank_ND
    bank_ND[30] = 0
    found, *_ = ranks.run(2, discover_here, bank_ND, search, 2)
    assert found.neighbours_NK.tolist()[30] == [0, 1]


def close_families(norm: float) -> Tensor:
    """Float32 rows whose nearest two differ by some 1e-4 in cosine; one row has norm 1."""
    random = torch.Generator().manual_seed(3)
    bank_ND = torch.randn(50, 16, generator=random, dtype=torch.float64).repeat(4, 1)
    bank_ND += 0.005 * torch.randn(200, 16, generator=random, dtype=torch.float64)
    bank_ND = norm * functional.normalize(bank_ND, dim=1)
    bank_ND[7] *= 1 / norm
    return bank_ND.float()


@pytest.mark.parametrize("norm", [1.0, 0.2, 0.01, 0.005])
def test_fused_is_exact_for_small_rows_beside_a_unit_row(ranks: RankPool, norm: float) -> None:
    """At temperature 0.01, where a unit row's logit is 100."""
    bank_ND = close_families(norm)
    found, *_ = ranks.run(2, discover_here, bank_ND, "fused", 1, 4, 0.98, PLENTY, 0.01)
    expected = dense_table(bank_ND, 1)
    is_wrong_N = found.neighbours_NK != torch.tensor(expected)
    assert is_wrong_N.nonzero()[:, 0].tolist() == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("search", APPROXIMATE)
def test_every_anchor_has_neighbours_where_an_index_finds_too_few(
    ranks: RankPool, size: int, search: str
) -> None:
    """Eight cells of shards of eleven rows, of which a query looks into one."""
    bank_ND = with_copies(41, 3)
    found, *_ = ranks.run(size, discover_here, bank_ND, search, 10, 3, 0.01)
    assert len(found.anchors_A) == 30
    check_neighbours(found.neighbours_NK[found.anchors_A], found.anchors_A, 41)
    instances = torch.ones(41, dtype=torch.bool)
    instances[found.anchors_A] = False
    assert (found.neighbours_NK[instances] == -1).all()


def true_recall(found: Neighbourhoods, bank_ND: Tensor) -> float:
    num_neighbours = found.neighbours_NK.shape[1]
    hits = 0
    for anchor in found.anchors_A.tolist():
        nearest = reference.nearest(bank_ND.double(), anchor, num_neighbours)
        hits += len({*nearest} & {*found.neighbours_NK[anchor].tolist()})
    return hits / (len(found.anchors_A) * num_neighbours)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("search", APPROXIMATE)
def test_reported_recall_is_that_of_all_anchors(ranks: RankPool, size: int, search: str) -> None:
    bank_ND = build_scene(203, 1, dtype=torch.float32).bank_ND
    found, *others = ranks.run(size, discover_here, bank_ND, search, 3, 2, 0.3)
    assert found.recall == pytest.approx(true_recall(found, bank_ND))
    assert all(other.recall == found.recall for other in others)
    assert found.recall < 1 or search == "HNSW16"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("search", ["IVF8,Flat", "IVF8,SQfp16", "IVF64,Flat"])
def test_a_recall_of_one_is_an_exact_search(ranks: RankPool, size: int, search: str) -> None:
    """For all rows, of which the index is tried on a quarter."""
    bank_ND = build_scene(1003, 1, dtype=torch.float32, seed=1).bank_ND
    found, *_ = ranks.run(size, discover_here, bank_ND, search, 1, 4, 1.0)
    exact, *_ = ranks.run(size, discover_here, bank_ND, "Flat", 1)
    assert torch.equal(found.neighbours_NK, exact.neighbours_NK)
    assert found.recall == 1


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("search", APPROXIMATE)
def test_an_index_finds_the_recall_that_is_asked_for(
    ranks: RankPool, size: int, search: str
) -> None:
    """Within 5 %, for the queries of other ranks as for the shard's own rows."""
    bank_ND = build_scene(1003, 1, dtype=torch.float32).bank_ND
    found, *_ = ranks.run(size, discover_here, bank_ND, search, 1, 4, 0.98)
    assert found.recall >= 0.93


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize("search", ["Flat", "fused", *APPROXIMATE])
def test_ranks_agree_and_entropies_are_exact_whatever_the_search(
    ranks: RankPool, size: int, search: str
) -> None:
    bank_ND = build_scene(203, 1).bank_ND
    tables = ranks.run(size, discover_here, bank_ND, search, 3, 2)
    expected_N = reference.entropy(bank_ND, TEMPERATURE)
    torch.testing.assert_close(tables[0].entropy_N, expected_N, rtol=0, atol=1e-10)
    lowest = expected_N[reference.anchors(expected_N, 101)]
    torch.testing.assert_close(expected_N[tables[0].anchors_A], lowest, rtol=0, atol=1e-10)
    for table in tables[1:]:
        assert torch.equal(table.neighbours_NK, tables[0].neighbours_NK)
        assert torch.equal(table.anchors_A, tables[0].anchors_A)
        assert torch.equal(table.entropy_N, tables[0].entropy_N)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_neighbours", [1, 30])
def test_a_search_in_chunks_finds_the_same(ranks: RankPool, size: int, num_neighbours: int) -> None:
    """The least memory that is allowed leaves chunks of two to eight rows."""
    bank_ND = with_copies(203, 20) * torch.linspace(0.2, 1, 203)[:, None]
    longest = -(-203 // size)
    least = longest * 32
    expected = dense_table(bank_ND, num_neighbours)
    for memory_bytes in (least, PLENTY):
        arguments = (bank_ND, "Flat", num_neighbours, 4, 0.98, memory_bytes)
        found, *_ = ranks.run(size, discover_here, *arguments)
        assert found.neighbours_NK.tolist() == expected


def test_chunks_know_what_they_left_out() -> None:
    """No row that a search leaves out is more similar than it says."""
    features_SD = build_scene(100, 1, dtype=torch.float32).bank_ND * 0.5
    queries_QD = build_scene(7, 1, dtype=torch.float32, seed=2).bank_ND
    found = ExactSearch(features_SD, 8 * 4 * 16 * 30).candidates(queries_QD, 5)
    assert found.places_QC.shape == (7, 20)
    cosine_QS = queries_QD @ (features_SD / 0.5).T
    is_left_out_QS = torch.ones(7, 100, dtype=torch.bool).scatter(1, found.places_QC, False)
    left_out_Q = cosine_QS.masked_fill(~is_left_out_QS, -torch.inf).amax(dim=1)
    assert (left_out_Q <= found.floor_Q + 1e-6).all()
    least_kept_Q = found.similarity_QC.unflatten(1, (4, 5)).amin(dim=2).amax(dim=1)
    assert torch.equal(found.floor_Q, least_kept_Q)


def test_rows_that_faiss_reads_as_they_are_are_not_copied() -> None:
    unit_XD = build_scene(41, 1, dtype=torch.float32).bank_ND
    assert unit_float32(unit_XD) is unit_XD
    for other_XD in (0.5 * unit_XD, unit_XD.double(), unit_XD.T.contiguous().T):
        ours_XD = unit_float32(other_XD)
        assert ours_XD.dtype == torch.float32
        torch.testing.assert_close(ours_XD, unit_XD)
        assert ours_XD is not other_XD


def test_the_best_of_parts_ties_to_the_lower_row_and_fills_up() -> None:
    nothing = -torch.inf
    left = Nearest(torch.tensor([[0.5, 0.1], [nothing, nothing]]), torch.tensor([[9, 4], [-1, -1]]))
    right = Nearest(torch.tensor([[0.5], [nothing]]), torch.tensor([[2], [-1]]))
    best = best_of([left, right], 4)
    assert best.rows_QK.tolist() == [[2, 9, 4, -1], [-1, -1, -1, -1]]
    assert best.similarity_QK[1].tolist() == [nothing] * 4


@pytest.mark.parametrize(
    ("search", "shortest", "sentence"),
    [
        ("Flatt", 200, "'Flatt' is no faiss index by inner product for 16 dimensions; right are"),
        ("IVF8,PQ3", 200, "'IVF8,PQ3' is no faiss index by inner product for 16 dimensions"),
        ("IVF201,Flat", 200, "into 201 cells, but the shortest shard has 200 rows; take fewer"),
        ("PCA8,IVF9,SQ8", 8, "into 9 cells, but the shortest shard has 8 rows"),
    ],
)
def test_an_impossible_search_is_refused(search: str, shortest: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"discovery.search=.*{sentence}"):
        check_search(search, 16, shortest)


@pytest.mark.parametrize("search", ["IVF0,Flat", "HNSW1", "IDMap,Flat", "PQ4"])
def test_an_index_that_cannot_be_built_is_refused_before_it_is_needed(search: str) -> None:
    """No cells; a graph without links (faiss crashes); rows must be numbered; 256 centroids."""
    with pytest.raises(ValueError, match=r"discovery\.search="):
        check_search(search, 16, 200)


def test_an_index_that_needs_some_rows_to_be_built_is_allowed() -> None:
    """Sixteen centroids of each of eight parts, from as many rows as the shortest shard has."""
    check_search("PQ8x4", 16, 200)
    with pytest.raises(ValueError, match="cannot hold 10 rows"):
        check_search("PQ8x4", 16, 10)


def test_a_shard_of_one_row_can_have_an_index(ranks: RankPool) -> None:
    bank_ND = build_scene(10, 1).bank_ND
    found, *_ = ranks.run(4, discover_here, bank_ND, "IVF1,Flat", 2)
    assert found.neighbours_NK.tolist() == dense_table(bank_ND, 2)


def test_cells_are_held_against_the_shortest_shard_that_has_rows() -> None:
    check_discovery(10, 16, 4, 1, "IVF1,Flat", PLENTY)
    with pytest.raises(ValueError, match="into 2 cells, but the shortest shard has 1 rows"):
        check_discovery(10, 16, 4, 1, "IVF2,Flat", PLENTY)
    check_discovery(9, 16, 4, 1, "IVF3,Flat", PLENTY)


@pytest.mark.parametrize(("search", "least"), [("Flat", 16_064), ("fused", 64_256)])
def test_too_little_memory_is_refused_with_what_it_takes(search: str, least: int) -> None:
    """502 rows of a shard; two sums a row, and four candidates where all pairs tell them."""
    check_discovery(1003, 16, 2, 3, search, least)
    sentence = "discovery.memory_mb=.* is too little: .*for the 502 rows of a shard; allow more"
    with pytest.raises(ValueError, match=sentence) as caught:
        check_discovery(1003, 16, 2, 3, search, least - 1)
    assert str(caught.value).endswith("or take Flat") == (search == "fused")


@pytest.mark.parametrize(
    ("search", "memory_bytes", "sentence"),
    [
        ("Flat", 1000, "discovery.memory_mb=0.001 is too little"),
        ("IVF200,Flat", PLENTY, "into 200 cells, but the shortest shard has 66 rows"),
        ("Flatt", PLENTY, "is no faiss index"),
    ],
)
def test_discovery_refuses_on_all_ranks(
    ranks: RankPool, search: str, memory_bytes: int, sentence: str
) -> None:
    bank_ND = build_scene(200, 1).bank_ND
    with pytest.raises(RankError) as caught:
        ranks.run(3, discover_here, bank_ND, search, 1, 4, 0.98, memory_bytes)
    assert sorted(caught.value.errors) == [0, 1, 2]
    assert all(isinstance(error, ValueError) for error in caught.value.errors.values())
    assert all(sentence in str(error) for error in caught.value.errors.values())


def no_room(*_: Any, **__: Any) -> None:
    raise MemoryError("no room for the candidates")


BREAKABLE: dict[str, tuple[type, str]] = {
    "nearest": (ShardSearch, "nearest"),
    "index": (ShardSearch, "__init__"),
    "tiles": (entropy._Tiles, "process_pair"),
}


def discover_with_rank_1_failing(
    world: World, bank_ND: Tensor, search: str, where: str
) -> Neighbourhoods:
    owner, name = BREAKABLE[where]
    working = getattr(owner, name)
    if world.rank == 1:
        setattr(owner, name, no_room)
    try:
        return discover_here(world, bank_ND, search, 1)
    finally:
        setattr(owner, name, working)


@pytest.mark.timed
@pytest.mark.parametrize("where", BREAKABLE)
@pytest.mark.parametrize("search", ["Flat", "fused", "HNSW16"])
def test_a_rank_that_fails_in_discovery_is_named_on_all_at_once(
    ranks: RankPool, at_most: Callable[[float], float], where: str, search: str
) -> None:
    bank_ND = with_copies(41, 5)
    started = time.monotonic()
    with pytest.raises(RankError) as caught:
        ranks.run(3, discover_with_rank_1_failing, bank_ND, search, where)
    assert time.monotonic() - started < at_most(10)
    assert sorted(caught.value.errors) == [0, 1, 2]
    sentence = "failed on rank 1: MemoryError: no room for the candidates"
    assert all(sentence in str(error) for error in caught.value.errors.values())
    found, *_ = ranks.run(3, discover_here, bank_ND, "Flat", 1)
    assert found.neighbours_NK.tolist() == dense_table(bank_ND, 1)


def discover_with_a_search_that_finds_itself(world: World, bank_ND: Tensor) -> None:
    working = discovery.search_shards

    def search(shard: ShardSearch, queries_QD: Tensor, own_Q: Tensor, world: World) -> Nearest:
        found = working(shard, queries_QD, own_Q, world)
        return found._replace(rows_QK=own_Q[:, None].expand_as(found.rows_QK))

    discovery.search_shards = search
    try:
        discover_here(world, bank_ND, "Flat", 1)
    finally:
        discovery.search_shards = working


def test_a_wrong_table_is_found_out_on_all_ranks(ranks: RankPool) -> None:
    with pytest.raises(RankError) as caught:
        ranks.run(2, discover_with_a_search_that_finds_itself, build_scene(41, 1).bank_ND)
    assert sorted(caught.value.errors) == [0, 1]
    sentence = "41 anchors have itself as a neighbour, row "
    assert all(sentence in str(error) for error in caught.value.errors.values())
