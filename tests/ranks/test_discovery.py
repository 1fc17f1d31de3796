"""Discovery and kNN votes against the dense reference, at any world size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from and_dist.config.schema import EvaluationConfig
from and_dist.distributed.collectives import raise_on_all_ranks
from and_dist.distributed.world import World
from and_dist.evaluation.accuracy import top1_accuracy
from and_dist.evaluation.knn import Voters, knn_places, vote
from and_dist.method.curriculum import num_anchors
from and_dist.method.discovery import _choose_anchors, discover
from and_dist.method.neighbour_search import ShardSearch, search_shards
from and_dist.method.neighbour_table import Neighbourhoods
from benchmarks.common.rank_pool import SIZES, RankError, RankPool
from tests import reference
from tests.ranks.scenes import build_scene, part_of, shard_of

TEMPERATURE = 0.2


def discover_here(
    world: World, bank_ND: Tensor, round_index: int, num_rounds: int, num_neighbours: int
) -> Neighbourhoods:
    bank = shard_of(bank_ND, world)
    return discover(bank, world, round_index, num_rounds, num_neighbours, TEMPERATURE)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("num_rows", "round_index", "num_neighbours"),
    [(41, 1, 1), (41, 4, 3), (1003, 2, 1), (1003, 4, 3), (5, 4, 4)],
)
def test_discovery_equals_dense(
    ranks: RankPool, size: int, num_rows: int, round_index: int, num_neighbours: int
) -> None:
    bank_ND = build_scene(num_rows, 1).bank_ND
    entropy_N = reference.entropy(bank_ND, TEMPERATURE)
    count = num_anchors(num_rows, round_index, 4)
    for found in ranks.run(size, discover_here, bank_ND, round_index, 4, num_neighbours):
        torch.testing.assert_close(found.entropy_N, entropy_N, rtol=1e-10, atol=1e-10)
        # Equal rows have equal entropies but for rounding, so the ranking is compared by value.
        expected = entropy_N[reference.anchors(entropy_N, count)]
        torch.testing.assert_close(entropy_N[found.anchors_A], expected, rtol=1e-10, atol=1e-10)
        assert len(found.anchors_A.unique()) == count
        for anchor in found.anchors_A.tolist():
            nearest = reference.nearest(bank_ND, anchor, num_neighbours)
            assert found.neighbours_NK[anchor].tolist() == nearest
        instances = torch.ones(num_rows, dtype=torch.bool)
        instances[found.anchors_A] = False
        assert (found.neighbours_NK[instances] == -1).all()


def test_all_ranks_hold_the_same_table(ranks: RankPool) -> None:
    bank_ND = build_scene(41, 1, dtype=torch.float32).bank_ND
    tables = [t for size in SIZES for t in ranks.run(size, discover_here, bank_ND, 2, 4, 3)]
    for table in tables[1:]:
        assert torch.equal(table.neighbours_NK, tables[0].neighbours_NK)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("copies", [2, 30, 120])
def test_many_duplicates_tie_to_the_lower_row(ranks: RankPool, size: int, copies: int) -> None:
    """More equal rows than faiss is first asked for, scattered over the shards."""
    bank_ND = build_scene(200, 1, dtype=torch.float32).bank_ND
    bank_ND[torch.randperm(200, generator=torch.Generator().manual_seed(1))[:copies]] = bank_ND[
        7
    ].clone()
    (found, *_) = ranks.run(size, discover_here, bank_ND, 4, 4, 3)
    expected = [reference.nearest(bank_ND.double(), row, 3) for row in range(200)]
    assert found.neighbours_NK.tolist() == expected


def test_unnormalised_rows_are_compared_by_cosine(ranks: RankPool) -> None:
    bank_ND = build_scene(41, 1).bank_ND * torch.linspace(0.2, 1, 41, dtype=torch.float64)[:, None]
    (found, *_) = ranks.run(2, discover_here, bank_ND, 4, 4, 2)
    expected = [reference.nearest(bank_ND, row, 2) for row in range(41)]
    assert found.neighbours_NK.tolist() == expected


def test_as_many_neighbours_as_rows_is_refused(ranks: RankPool) -> None:
    with pytest.raises(RankError, match="needs more than 5 images"):
        ranks.run(2, discover_here, build_scene(5, 1).bank_ND, 1, 4, 5)


def fail_on_rank_1(world: World) -> None:
    with raise_on_all_ranks(world, "the search"):
        if world.rank == 1:
            raise MemoryError("no room for the index")


def test_one_rank_failing_is_told_to_all(ranks: RankPool) -> None:
    with pytest.raises(RankError) as caught:
        ranks.run(3, fail_on_rank_1)
    sentence = "the search failed on rank 1: MemoryError: no room for the index"
    assert {rank: str(error) for rank, error in caught.value.errors.items()} == dict.fromkeys(
        range(3), sentence
    )


def a_broken_bank(world: World, bank_ND: Tensor) -> None:
    discover(shard_of(bank_ND, world), world, 1, 4, 1, TEMPERATURE)


def test_a_bank_that_is_not_finite_ends_discovery_on_all_ranks(ranks: RankPool) -> None:
    bank_ND = build_scene(41, 1).bank_ND
    bank_ND[40] = torch.nan
    with pytest.raises(RankError) as caught:
        ranks.run(3, a_broken_bank, bank_ND)
    assert sorted(caught.value.errors) == [0, 1, 2]
    assert str(caught.value.errors[2]) == "1 rows of the bank are not finite, row 40 first"


def test_entropies_that_are_not_finite_choose_no_anchors() -> None:
    entropy_N = torch.tensor([1.0, torch.nan, 0.5, torch.inf, 2.0])
    with pytest.raises(RuntimeError, match=r"^the entropy of 2 rows is not finite$"):
        _choose_anchors(entropy_N, 1)
    assert _choose_anchors(entropy_N[[0, 2]], 1).tolist() == [1]


def votes_here(
    world: World, bank_ND: Tensor, queries_MD: Tensor, labels_N: Tensor, num_neighbours: int
) -> Tensor:
    shard = shard_of(bank_ND, world)
    search = ShardSearch(shard.features_SD, shard.start, num_neighbours)
    queries_QD = part_of(queries_MD, world, 1.0)
    no_rows_Q = torch.full((len(queries_QD),), -1)
    nearest = search_shards(search, queries_QD, no_rows_Q, world)
    return vote(nearest, labels_N, int(labels_N.max()) + 1, TEMPERATURE)


def accuracy_here(
    world: World, bank_ND: Tensor, queries_MD: Tensor, labels_N: Tensor, num_neighbours: int
) -> float:
    shard = shard_of(bank_ND, world)
    mine = slice(*_range(len(queries_MD), world))
    labels_M = torch.arange(len(queries_MD)) % (int(labels_N.max()) + 1)
    places_M = knn_places(
        Voters(shard.features_SD, shard.start, labels_N),
        queries_MD[mine],
        labels_M[mine],
        world,
        EvaluationConfig(knn=num_neighbours, knn_temperature=TEMPERATURE),
    )
    return top1_accuracy(places_M, world)


def _range(count: int, world: World) -> tuple[int, int]:
    length = -(-count // world.size)
    return min(world.rank * length, count), min((world.rank + 1) * length, count)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_classes", [1, 2, 41])
@pytest.mark.parametrize("num_neighbours", [1, 5, 41, 200])
def test_knn_votes_equal_dense(
    ranks: RankPool, size: int, num_classes: int, num_neighbours: int
) -> None:
    bank_ND = build_scene(41, 1).bank_ND
    labels_N = torch.arange(41) % num_classes
    random = torch.Generator().manual_seed(2)
    queries_MD = torch.randn(9, 16, generator=random, dtype=torch.float64)
    expected_QC = torch.zeros(9, num_classes, dtype=torch.float64)
    for query, query_D in enumerate(queries_MD):
        votes = reference.knn_votes(query_D, bank_ND, labels_N, num_neighbours, TEMPERATURE)
        for label, weight in votes.items():
            expected_QC[query, label] = weight
    arguments = (bank_ND, queries_MD, labels_N, num_neighbours)
    ours_QC = torch.cat(ranks.run(size, votes_here, *arguments))[:9]
    shares_QC = ours_QC / ours_QC.sum(dim=1, keepdim=True)
    expected_shares_QC = expected_QC / expected_QC.sum(dim=1, keepdim=True)
    torch.testing.assert_close(shares_QC, expected_shares_QC, rtol=1e-10, atol=1e-10)
    guesses = expected_QC.argmax(dim=1)
    right = (guesses == torch.arange(9) % num_classes).double().mean().item()
    accuracies = ranks.run(size, accuracy_here, *arguments)
    assert accuracies == pytest.approx([right] * size)


def test_rows_without_a_label_do_not_vote(ranks: RankPool) -> None:
    """As what could not be read; here all rows are among the K."""
    bank_ND = build_scene(41, 1).bank_ND
    labels_N = torch.arange(41) % 3
    labels_N[5], labels_N[20] = -1, -1
    queries_MD = torch.randn(9, 16, generator=torch.Generator().manual_seed(2)).double()
    ours_QC = torch.cat(ranks.run(2, votes_here, bank_ND, queries_MD, labels_N, 41))[:9]
    kept_N = labels_N >= 0
    for query_D, ours_C in zip(queries_MD, ours_QC, strict=True):
        votes = reference.knn_votes(query_D, bank_ND[kept_N], labels_N[kept_N], 39, TEMPERATURE)
        expected_C = torch.tensor([votes[label] for label in range(3)], dtype=torch.float64)
        torch.testing.assert_close(ours_C / ours_C.sum(), expected_C / expected_C.sum())


def places_here(world: World, bank_ND: Tensor, labels_N: Tensor, labels_M: Tensor) -> Tensor:
    shard = shard_of(bank_ND, world)
    queries_MD = bank_ND[: len(labels_M)]
    voters = Voters(shard.features_SD, shard.start, labels_N)
    settings = EvaluationConfig(knn=1, knn_temperature=0.1)
    return knn_places(voters, queries_MD, labels_M, world, settings)


def test_a_class_without_a_vote_has_the_last_place(ranks: RankPool) -> None:
    """Or else the first classes would be among five that nobody voted for."""
    bank_ND = build_scene(41, 1).bank_ND[2:12]
    labels_N = torch.arange(10)
    labels_M = torch.tensor([0, 0, 2, 9, 4])
    (places_M,) = ranks.run(1, places_here, bank_ND, labels_N, labels_M)
    assert places_M.tolist() == [0, 9, 0, 9, 0]


def test_an_approximate_index_finds_most(ranks: RankPool) -> None:
    bank_ND = functional.normalize(torch.randn(1003, 16), dim=1)
    found = ranks.run(2, approximate, bank_ND)[0]
    exact = ranks.run(2, discover_here, bank_ND, 4, 4, 1)[0]
    assert (found.neighbours_NK == exact.neighbours_NK).float().mean() > 0.9


def approximate(world: World, bank_ND: Tensor) -> Neighbourhoods:
    return discover(shard_of(bank_ND, world), world, 4, 4, 1, TEMPERATURE, search="HNSW32")
