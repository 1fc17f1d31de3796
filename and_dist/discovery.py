"""The round boundary (Eq. 1, 5, 6): entropy of every row, anchors, their nearest rows.

Every rank streams its own rows, block by block, past everyone's shards, exactly as a training step
does with its batch; what comes back concerns its own rows. The coordinator, rank 0 in role only,
merges, ranks, chooses, checks and broadcasts. It reads the bank alone, no image and no label.

N all rows, S rows of this shard or anchors, Q queries of one block, K neighbours, D feature.
"""

from __future__ import annotations

import torch
from torch import Tensor

from and_dist.bank import BankShard, shard_range
from and_dist.collectives import (
    broadcast_from_coordinator,
    equal_blocks,
    exchange_parts,
    failing_together,
    gather_batch,
    gather_to_coordinator,
    take_rows,
)
from and_dist.curriculum import (
    Neighbourhoods,
    check_neighbours,
    num_anchors,
    select_anchors,
)
from and_dist.neighbours import ShardIndex, search_shards
from and_dist.partition import Partition, log_partition, merge_stacked
from and_dist.world import World

ROWS_PER_BLOCK = 1024


def discover(
    bank: BankShard,
    world: World,
    round_index: int,
    num_rounds: int,
    num_neighbours: int,
    temperature: float,
    search: str = "Flat",
) -> Neighbourhoods:
    """Neighbourhoods of round `round_index` of `num_rounds`, equal on all ranks."""
    if num_neighbours >= bank.num_rows:
        raise ValueError(
            f"curriculum.neighbours={num_neighbours} needs more than {num_neighbours} images, "
            f"the bank has {bank.num_rows} rows"
        )
    count = num_anchors(bank.num_rows, round_index, num_rounds)
    entropy_N = _gather_rows(entropy_of_shard(bank, world, temperature), bank, world)
    anchors_S = torch.empty(count, dtype=torch.int64, device=bank.features_SD.device)
    with failing_together(world, "choosing the anchors"):
        if world.is_coordinator:
            if not bool(entropy_N.isfinite().all()):
                raise RuntimeError(
                    f"the entropy of {int((~entropy_N.isfinite()).sum())} rows is not finite"
                )
            anchors_S = select_anchors(entropy_N, count)
    broadcast_from_coordinator(world, entropy_N)
    broadcast_from_coordinator(world, anchors_S)
    neighbours_SK = neighbours_of_shard(bank, world, anchors_S, num_neighbours, search)
    neighbours_NK = _gather_rows(neighbours_SK, bank, world)
    with failing_together(world, "checking the neighbours"):
        if world.is_coordinator:
            check_neighbours(neighbours_NK[anchors_S], anchors_S, bank.num_rows)
    broadcast_from_coordinator(world, neighbours_NK)
    return Neighbourhoods(neighbours_NK, entropy_N, anchors_S)


def entropy_of_shard(bank: BankShard, world: World, temperature: float) -> Tensor:
    """Entropy of the rows of this shard over the whole bank (Eq. 5)."""
    entropies = [bank.features_SD.new_empty(0, dtype=_wide(bank))]
    positions_S = torch.arange(len(bank.features_SD), device=bank.features_SD.device)
    for positions_Q in equal_blocks(world, positions_S, ROWS_PER_BLOCK):
        mine_QD = take_rows(bank.features_SD, positions_Q)
        (queries_GD,) = gather_batch(world, [mine_QD])
        with failing_together(world, "the entropy of the bank"):
            partial = log_partition(queries_GD, bank.features_SD, temperature)
        merged = merge_stacked(Partition(*exchange_parts(world, list(partial))))
        energy_Q = (mine_QD.to(merged.mean.dtype) * merged.mean).sum(dim=1) / temperature
        entropies.append((merged.log_z - energy_Q)[positions_Q >= 0])
    return torch.cat(entropies)


def neighbours_of_shard(
    bank: BankShard, world: World, anchors_S: Tensor, num_neighbours: int, search: str
) -> Tensor:
    """[S, K] nearest rows of those rows of this shard that are anchors; -1 for the others."""
    device = bank.features_SD.device
    table_SK = torch.full((bank.stop - bank.start, num_neighbours), -1, device=device)
    with failing_together(world, "building the search index"):
        index = ShardIndex(bank.features_SD, bank.start, search)
    mine_S = anchors_S[(anchors_S >= bank.start) & (anchors_S < bank.stop)].sort().values
    for positions_Q in equal_blocks(world, mine_S - bank.start, ROWS_PER_BLOCK):
        is_real_Q = positions_Q >= 0
        rows_Q = (positions_Q + bank.start).where(is_real_Q, -1)
        queries_QD = take_rows(bank.features_SD, positions_Q)
        nearest = search_shards(index, queries_QD, rows_Q, num_neighbours, world)
        table_SK[positions_Q[is_real_Q]] = nearest.rows_QK.to(device)[is_real_Q]
    return table_SK


def _gather_rows(values_S: Tensor, bank: BankShard, world: World) -> Tensor:
    """[S, ...] of every shard -> [N, ...] on the coordinator; the same shape, unset, elsewhere."""
    longest = shard_range(bank.num_rows, 0, world.size)[1]
    padded = values_S.new_zeros(longest, *values_S.shape[1:])
    padded[: len(values_S)] = values_S
    gathered = gather_to_coordinator(world, padded)
    if gathered is None:
        return values_S.new_zeros(bank.num_rows, *values_S.shape[1:])
    # All shards before the last non-empty one are full, so cutting the end is enough.
    return gathered.flatten(0, 1)[: bank.num_rows].contiguous()


def _wide(bank: BankShard) -> torch.dtype:
    return torch.promote_types(bank.features_SD.dtype, torch.float32)
