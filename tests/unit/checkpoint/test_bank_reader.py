"""A bank as it lies in a checkpoint, against the whole of it in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from and_dist.checkpoint.bank_reader import StoredBank, search_bank
from and_dist.checkpoint.storage import save_checkpoint
from and_dist.distributed.world import World
from and_dist.method.memory_bank import MemoryBank, shard_range
from benchmarks.common.rank_pool import RankPool
from tests.ranks.scenes import build_scene

N = 203


def save_bank(world: World, folder: Path) -> None:
    start, stop = shard_range(N, world.rank, world.size)
    rows_ND = build_scene(N, 1).bank_ND.float()
    bank = MemoryBank(rows_ND[start:stop].clone(), start, N, 0.5)
    save_checkpoint(folder, "r00-e0001", {}, {}, world, bank)


def test_rows_written_by_three_ranks_are_read_in_parts(ranks: RankPool, tmp_path: Path) -> None:
    ranks.run(3, save_bank, tmp_path)
    bank_ND, stored = build_scene(N, 1).bank_ND.float(), StoredBank(tmp_path / "r00-e0001")
    assert stored.num_rows == N
    parts = list(stored.blocks(50))
    assert [start for start, _ in parts] == [0, 50, 68, 118, 136, 186]
    torch.testing.assert_close(torch.cat([rows for _, rows in parts]), bank_ND, atol=0, rtol=0)
    wanted_Q = torch.tensor([202, 0, 67, 68, 68, 135])
    torch.testing.assert_close(stored.take(wanted_Q), bank_ND[wanted_Q], atol=0, rtol=0)


def test_a_search_in_parts_is_that_of_the_whole(ranks: RankPool, tmp_path: Path) -> None:
    ranks.run(2, save_bank, tmp_path)
    bank_ND, stored = build_scene(N, 1).bank_ND.double(), StoredBank(tmp_path / "r00-e0001")
    rows_Q = torch.tensor([3, 150, 202])
    unit_ND = torch.nn.functional.normalize(bank_ND.float().double(), dim=1)
    cosines_QN = unit_ND[rows_Q] @ unit_ND.T
    found = search_bank(stored, stored.take(rows_Q), 5)
    assert found.rows_QK.tolist() == highest(cosines_QN)
    others_QN = cosines_QN.scatter(1, rows_Q[:, None], -torch.inf)
    without = search_bank(stored, stored.take(rows_Q), 5, rows_Q)
    assert without.rows_QK.tolist() == highest(others_QN)


def highest(cosines_QN: Tensor) -> list[list[int]]:
    """The five best of each, the lower row first where two are equal."""
    order_QN = cosines_QN.round(decimals=12).argsort(dim=1, descending=True, stable=True)
    return order_QN[:, :5].tolist()
