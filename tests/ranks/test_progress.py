"""Every rank is told of a discovery's progress as often, so that being told may be a collective."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from and_dist.distributed.collectives import reduce_sum
from and_dist.distributed.world import World
from and_dist.method.discovery import discover
from benchmarks.common.rank_pool import RankPool
from tests.ranks.scenes import build_scene, shard_of

TEMPERATURE = 0.2


def progress_here(world: World, bank_ND: Tensor, search: str, round_index: int) -> float:
    """Every call is a collective, as where a run can be stopped."""
    told: list[float] = []

    def tell(share: float) -> None:
        told.append(share)
        calls = torch.tensor([len(told)])
        assert int(reduce_sum(world, calls)) == world.size * len(told)

    bank = shard_of(bank_ND, world)
    discover(bank, world, round_index, 4, 1, TEMPERATURE, search, progress=tell)
    assert min(told) >= 0
    return sum(told)


@pytest.mark.parametrize("search", ["Flat", "fused", "IVF8,Flat"])
@pytest.mark.parametrize("round_index", [1, 4])
def test_progress_comes_to_one_on_every_rank(
    ranks: RankPool, search: str, round_index: int
) -> None:
    bank_ND = build_scene(203, 1).bank_ND
    shares = ranks.run(3, progress_here, bank_ND, search, round_index)
    assert shares == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("search", ["Flat", "fused", "HNSW8"])
def test_progress_is_told_alike_where_a_rank_has_no_anchor(ranks: RankPool, search: str) -> None:
    """The first rank's rows, all alike, are of high entropy; ties of theirs are searched again."""
    bank_ND = build_scene(203, 1).bank_ND
    bank_ND[:68] = bank_ND[0].clone()
    for round_index in (1, 4):
        shares = ranks.run(3, progress_here, bank_ND, search, round_index)
        assert shares == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("search", ["Flat", "fused"])
def test_progress_is_told_alike_where_a_rank_has_no_row(ranks: RankPool, search: str) -> None:
    shares = ranks.run(4, progress_here, build_scene(5, 1).bank_ND, search, 4)
    assert shares == pytest.approx([1, 1, 1, 1])
