"""Simulate one rank of a large world, and measure its training step and its discovery.

Each of the other ranks sends the same as this one does. So shapes and memory are those of a real
rank, and the loss is known: that of this rank alone.

B local batch, G global batch, S rows of this shard, N all rows, K neighbours, D feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from and_dist.distributed.world import World
from and_dist.method.curriculum import num_anchors, select_anchors
from and_dist.method.discovery import ROWS_OF_ALL_RANKS, ROWS_PER_BLOCK, discover
from and_dist.method.entropy import scan_pairs
from and_dist.method.loss import gather_global_batch, sharded_nll
from and_dist.method.neighbour_search import MEMORY_BYTES, ShardSearch, search_shards
from and_dist.method.neighbour_table import all_instances, check_neighbours
from benchmarks.common.harness import Benchmark
from benchmarks.common.memory import extra_peak_mb
from benchmarks.common.one_rank import DIM, Rank, build_shard, unit_features
from benchmarks.common.peers import TEMPERATURE
from benchmarks.common.uniform_ranks import open_uniform_group
from benchmarks.common.watch import Made, Watch

NEIGHBOURS = 1


@contextmanager
def open_simulated_world(rank: int, size: int) -> Iterator[World]:
    """Open a world in which all other ranks send the same as this one."""
    with open_uniform_group(rank, size) as group:
        yield World(rank, size, 0, 1, torch.device("cpu"), group, group)


def simulated_rank(world: World, num_rows: int, batch: int, dtype: torch.dtype) -> Rank:
    """Return a rank whose queries and neighbours are rows of its own shard, spread over it."""
    bank = build_shard(world, num_rows, dtype)
    length = len(bank.features_SD)
    places_B = torch.arange(batch) * (length // batch)
    neighbours_B = bank.start + (places_B + 1) % length
    return Rank(world, bank, bank.start + places_B, neighbours_B, unit_features(batch))


def simulate_training(
    size: int, num_rows: int, batch: int, dtype: str, repeats: int
) -> dict[str, Any]:
    """Return a rank's memory by part, and the seconds of steps with a global batch of size *
    batch."""
    with open_simulated_world(0, size) as world:
        rank = simulated_rank(world, num_rows, batch, getattr(torch, dtype))
        alone = loss_alone(rank)
        with Watch(size) as watch:
            loss = rank.step().item()
        assert abs(loss - alone) < 1e-3, f"a world of such ranks loses {loss}, one alone {alone}"
        rest_mb = extra_peak_mb(rank.step)
        seconds = Benchmark("").repeat({"a step": rank.step}, repeats, warm_up=0)["a step"]
    check_largest(watch.largest(), size * batch)
    return {
        "seconds": seconds,
        "shard_mb": rank.bank.features_SD.nbytes / 1e6,
        "table_mb": table_bytes(num_rows) / 1e6,
        "rest_mb": rest_mb,
        "made_bytes_a_query": watch.bytes_made() / (size * batch),
        "largest": str(watch.largest()),
    }


def loss_alone(rank: Rank) -> float:
    """Return the loss of this rank's batch over its shard, in a world of one."""
    world = replace(rank.world, rank=0, size=1)
    features_BD, rows_B = rank.inputs_BX.detach(), rank.rows_B
    batch = gather_global_batch(features_BD, rows_B, rank.neighbours_NK[rows_B], world)
    return sharded_nll(features_BD, batch, rank.bank, world, TEMPERATURE).item()


def check_largest(largest: Made, global_batch: int) -> None:
    """Assert that no tensor takes more than a few features for each query of the global batch.

    So none grows with B x N, or with W x W where a rank has one query.
    """
    partitions = 2 * 4 * (1 + DIM)  # log z and mean, over all rows and over the positives
    positives = 4 * (1 + NEIGHBOURS) * DIM
    assert largest.num_bytes <= global_batch * max(partitions, positives), str(largest)


def table_bytes(num_rows: int) -> int:
    """Return the bytes of the last round's discovery on every rank, counted on the meta device."""
    table = all_instances(num_rows, NEIGHBOURS, torch.device("meta"))
    anchors = 8 * num_anchors(num_rows, 1, 1)
    return table.neighbours_NK.nbytes + table.entropy_N.nbytes + anchors


class _EnoughError(Exception):
    """Stop a scan after its first block; the other blocks take as much memory."""


def simulate_scan(size: int, rows_per_rank: int) -> dict[str, float]:
    """Return the most memory that the scan of all pairs holds above the shard in its first
    block."""

    def stop(_: float) -> None:
        raise _EnoughError

    def scan_one_block() -> None:
        try:
            scan_pairs(bank, world, TEMPERATURE, MEMORY_BYTES, NEIGHBOURS + 1, stop)
        except _EnoughError:
            return

    with open_simulated_world(0, size) as world:
        bank = build_shard(world, size * rows_per_rank)
        return {"rest_mb": extra_peak_mb(scan_one_block)}


def simulate_search(size: int, rows_per_rank: int) -> dict[str, float]:
    """Return the most memory that a search for one block of all ranks' anchors holds above the
    shard."""

    def search_one_block() -> None:
        rows_Q = torch.arange(min(ROWS_PER_BLOCK, ROWS_OF_ALL_RANKS // size, rows_per_rank))
        shard = ShardSearch(bank.features_SD, bank.start, NEIGHBOURS)
        search_shards(shard, bank.features_SD[rows_Q], rows_Q + bank.start, world)

    with open_simulated_world(0, size) as world:
        bank = build_shard(world, size * rows_per_rank)
        return {"rest_mb": extra_peak_mb(search_one_block)}


def lines_that_grow_with_rows(sizes: tuple[int, int], rows_per_rank: int) -> dict[str, int]:
    """Return the lines of a discovery on rank 0 that make tensors of N rows, and their bytes a row.

    A shard has the same length in both worlds, and is longer than a block: a tensor that has N rows
    in both worlds has them because of N, not because of S or G.
    """
    found: list[dict[str, int]] = []
    for size in sizes:
        num_rows = size * rows_per_rank
        with open_simulated_world(0, size) as world:
            bank = build_shard(world, num_rows)
            with Watch(size) as watch:
                discover(bank, world, 1, 1, NEIGHBOURS, TEMPERATURE)
        of_all = [made for made in sorted(watch.made) if made.num_elements == num_rows * NEIGHBOURS]
        found.append({made.where: round(made.num_bytes / num_rows) for made in of_all})
    return {where: found[1][where] for where in found[0] if where in found[1]}


def simulate_coordinator(num_rows: int) -> dict[str, float]:
    """Return the most bytes a row that rank 0 holds while it selects anchors and checks neighbours.

    Entropies and the table themselves are not counted.
    """
    entropy_N = torch.rand(num_rows, dtype=torch.float64)
    table_NK = torch.arange(1, num_rows + 1)[:, None] % num_rows
    choosing = extra_peak_mb(lambda: select_anchors(entropy_N, num_rows))
    anchors_A = select_anchors(entropy_N, num_rows)
    checking = extra_peak_mb(lambda: check_neighbours(table_NK[anchors_A], anchors_A, num_rows))
    return {
        "choosing the anchors": choosing * 1e6 / num_rows,
        "checking their neighbours": checking * 1e6 / num_rows,
    }
