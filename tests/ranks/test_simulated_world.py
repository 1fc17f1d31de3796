"""What a rank's step makes in worlds too large to start, and that the count of it is true."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from and_dist.distributed.world import World
from and_dist.method import loss as loss_module
from and_dist.method.memory_bank import MemoryBank
from and_dist.method.partition_kernels import ROWS_PER_BLOCK
from and_dist.method.partition_merge import Partition
from benchmarks.common.one_rank import (
    DIM,
    Rank,
    assert_same,
    bytes_expected,
    expected_step,
    measure_rank,
)
from benchmarks.common.rank_pool import RankPool
from benchmarks.common.simulation import (
    check_largest,
    lines_that_grow_with_rows,
    loss_alone,
    open_simulated_world,
    simulated_rank,
)
from benchmarks.common.watch import Watch

SHARD, QUERIES = 8192, 1024
"""Rows of a rank and queries of all ranks: their logits are 34 MB."""


def watch_step(rank: Rank) -> Watch:
    with Watch(rank.world.size) as watch:
        rank.step()
    return watch


def build(world: World) -> Rank:
    return simulated_rank(world, world.size * SHARD, QUERIES // world.size, torch.float32)


def with_rows(rank: Rank, num_rows: int) -> Rank:
    """The same shard of a larger bank."""
    bank = MemoryBank(rank.bank.features_SD, rank.bank.start, num_rows, rank.bank.update_rate)
    neighbours_B = rank.neighbours_NK[rank.rows_B, 0]
    return Rank(rank.world, bank, rank.rows_B, neighbours_B, rank.inputs_BX)


def test_rows_elsewhere_take_nothing_here() -> None:
    with open_simulated_world(3, 64) as world:
        rank = build(world)
        few, many = (watch_step(with_rows(rank, times * 64 * SHARD)) for times in (1, 4))
    assert few.made == many.made
    check_largest(many.largest(), QUERIES)


@pytest.mark.parametrize(
    ("stored", "products"),
    [
        (torch.float32, None),
        (torch.float32, torch.bfloat16),
        (torch.float16, None),
        (torch.bfloat16, None),
    ],
)
def test_rows_here_take_a_block_at_most(stored: torch.dtype, products: torch.dtype | None) -> None:
    block = ROWS_PER_BLOCK * (DIM + 1) * 2
    largest = []
    with open_simulated_world(0, 64) as world:
        for length in (2 * ROWS_PER_BLOCK, 3 * ROWS_PER_BLOCK):
            rank = simulated_rank(world, 64 * length, QUERIES // 64, stored)
            rank.bank.products = products
            largest.append(watch_step(rank).largest().num_bytes)
    assert largest[0] == largest[1] <= max(block, QUERIES * 2 * 4 * (DIM + 1))


def test_ranks_elsewhere_take_nothing_here() -> None:
    """Of as many queries. What a thousand ranks square to would be as much as all there is."""
    totals = []
    for size in (64, 1024):
        with open_simulated_world(0, size) as world:
            watch = watch_step(build(world))
        check_largest(watch.largest(), QUERIES)
        assert all(made.num_bytes < 4 * 1024**2 for made in watch.made)
        totals.append(watch.bytes_made())
    assert totals[1] < 1.02 * totals[0]


def dense(queries_GD: Tensor, rows_SD: Tensor, temperature: float, *_: object) -> Partition:
    logits_GS = queries_GD.detach() @ rows_SD.T / temperature
    return Partition(logits_GS.logsumexp(dim=1), logits_GS.softmax(dim=1) @ rows_SD)


def test_logits_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "log_partition", dense)
    with open_simulated_world(0, 64) as world:
        largest = watch_step(build(world)).largest()
    assert largest.num_bytes == 4 * QUERIES * SHARD
    with pytest.raises(
        AssertionError, match=r"\[1024, 8192\] in tests/ranks/test_simulated_world.py"
    ):
        check_largest(largest, QUERIES)


@pytest.mark.parametrize("size", [2, 64, 1024])
def test_a_world_of_equal_ranks_loses_what_one_does(size: int) -> None:
    with open_simulated_world(size - 1, size) as world:
        rank = build(world)
        alone = loss_alone(rank)
        with Watch(size) as watch:
            loss = rank.step()
    assert loss.item() == pytest.approx(alone, rel=1e-5)
    assert sum(watch.received.values()) == bytes_expected(size, QUERIES)
    assert len(watch.received) == 3  # collectives


@pytest.mark.parametrize("size", [1, 2, 4])
def test_real_ranks_send_as_much(ranks: RankPool, size: int) -> None:
    (expected_GX,) = ranks.run(1, expected_step, 3000, 64)
    found = ranks.run(size, measure_rank, 3000, 64, "", 3)
    assert_same(torch.cat([of_rank["result_BX"] for of_rank in found]), expected_GX)
    for of_rank in found:
        assert of_rank["received"] == bytes_expected(size, 64)
        assert of_rank["loopback"] >= of_rank["received"]


def test_only_the_table_of_a_discovery_grows_with_rows() -> None:
    lines = lines_that_grow_with_rows((2, 3), 2100)
    assert {line.partition(":")[0] for line in lines} == {
        "and_dist/distributed/collectives.py",
        "and_dist/method/curriculum.py",
        "and_dist/method/discovery.py",
        "and_dist/method/neighbour_table.py",
    }
