"""The round boundary (Eq. 1, 5, 6): entropy of every row, anchors, their nearest rows.

Every rank streams its own rows, block by block, past everyone's shards, exactly as a training step
does with its batch; what comes back concerns its own rows. The coordinator, rank 0 in role only,
ranks, chooses, checks and broadcasts. It reads the bank alone, no image and no label.

N all rows, S rows of this shard or anchors, Q queries of one block, K neighbours, D feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from and_dist.distributed.collectives import (
    broadcast_from_coordinator,
    equal_blocks,
    gather_to_coordinator,
    raise_on_all_ranks,
    reduce_sum,
    take_rows,
)
from and_dist.distributed.world import World
from and_dist.method.curriculum import num_anchors, select_anchors
from and_dist.method.entropy import PairScan, bytes_per_row, scan_pairs
from and_dist.method.faiss_search import EXACT, check_search
from and_dist.method.memory_bank import MemoryBank, all_shards, shard_range
from and_dist.method.neighbour_search import (
    MEMORY_BYTES,
    RECALL,
    ROUNDING,
    Approximate,
    ShardSearch,
    gather_sample,
    search_shards,
)
from and_dist.method.neighbour_table import Neighbourhoods, check_neighbours
from and_dist.utils.progress import Advance, silently

ROWS_PER_BLOCK, ROWS_OF_ALL_RANKS = 2048, 1 << 15
"""That are searched for at a time, of one rank and together."""
RECALL_SAMPLE = 1024
"""Anchors whose neighbours are searched exactly too, where the search is approximate."""


def discover(
    bank: MemoryBank,
    world: World,
    round_index: int,
    num_rounds: int,
    num_neighbours: int,
    temperature: float,
    search: str = "Flat",
    recall: float = RECALL,
    memory_bytes: int = MEMORY_BYTES,
    advance: Advance = silently,
) -> Neighbourhoods:
    """Neighbourhoods of round `round_index` of `num_rounds`, equal on all ranks.

    `advance` is told on every rank as often, between collectives: it may hold one of its own.
    """
    dim = bank.features_SD.shape[1]
    check_discovery(bank.num_rows, dim, world.size, num_neighbours, search, memory_bytes)
    count = num_anchors(bank.num_rows, round_index, num_rounds)
    phase = _Phase(bank, world, num_neighbours, search, recall, memory_bytes, advance, count)
    scan = phase.scan(temperature)
    entropy_N = _gather_rows(scan.entropy_S, bank, world)
    anchors_A = torch.empty(count, dtype=torch.int64, device=bank.features_SD.device)
    with raise_on_all_ranks(world, "choosing the anchors"):
        if world.is_coordinator:
            if not bool(entropy_N.isfinite().all()):
                num_bad = int((~entropy_N.isfinite()).sum())
                raise RuntimeError(f"the entropy of {num_bad} rows is not finite")
            anchors_A = select_anchors(entropy_N, count)
    broadcast_from_coordinator(world, entropy_N)
    broadcast_from_coordinator(world, anchors_A)
    table_SK, found_share = phase.search(scan, anchors_A)
    neighbours_NK = _gather_rows(table_SK, bank, world)
    with raise_on_all_ranks(world, "checking the neighbours"):
        if world.is_coordinator:
            check_neighbours(neighbours_NK[anchors_A], anchors_A, bank.num_rows)
    broadcast_from_coordinator(world, neighbours_NK)
    return Neighbourhoods(neighbours_NK, entropy_N, anchors_A, found_share)


def check_discovery(
    num_rows: int, dim: int, world_size: int, num_neighbours: int, search: str, memory_bytes: int
) -> None:
    """ValueError for what cannot be: no index, too few rows, or too little memory for a shard's."""
    if num_neighbours >= num_rows:
        raise ValueError(
            f"curriculum.neighbours={num_neighbours} needs more than {num_neighbours} images, "
            f"the bank has {num_rows} rows"
        )
    lengths = [stop - start for start, stop in all_shards(num_rows, world_size)]
    check_search(search, dim, min(length for length in lengths if length))
    candidates = num_neighbours + 1 if search == "fused" else 0
    needed = (
        lengths[0] * bytes_per_row(candidates) * 2
    )  # the blocks that stream take the other half
    if needed > memory_bytes:
        raise ValueError(
            f"discovery.memory_mb={memory_bytes / 1e6:g} is too little: discovery.search={search} "
            f"with curriculum.neighbours={num_neighbours} takes {needed / 1e6:,.0f} MB for the "
            f"{lengths[0]:,} rows of a shard; allow more, or start more ranks"
            + (", or take Flat" if candidates else "")
        )


@dataclass(frozen=True)
class _Phase:
    """One discovery: its two passes over the bank."""

    bank: MemoryBank
    world: World
    num_neighbours: int
    search_name: str
    recall: float
    memory_bytes: int
    advance: Advance
    num_anchors: int

    def scan(self, temperature: float) -> PairScan:
        """Entropy of this shard's rows, and who may be their nearest if all pairs are to tell."""
        candidates = self.num_neighbours + 1 if self.search_name == "fused" else 0
        share = 1.0 if candidates else self._share_of_scan()
        return scan_pairs(
            self.bank,
            self.world,
            temperature,
            self.memory_bytes,
            candidates,
            lambda part: self.advance(share * part),
        )

    def search(self, scan: PairScan, anchors_A: Tensor) -> tuple[Tensor, float]:
        """[S, K] nearest rows of those rows of this shard that are anchors, -1 for the others;
        and the recall, 1 where the search is exact."""
        here_S = anchors_A[(anchors_A >= self.bank.start) & (anchors_A < self.bank.stop)]
        mine_S = here_S.sort().values
        if self.search_name == "fused":
            table_SK = self._settled(scan, mine_S)
        else:
            table_SK = self._search_rows(mine_S, self.search_name, 1 - self._share_of_scan())
        is_open_S = (table_SK[mine_S - self.bank.start] < 0).any(dim=1)
        exact_SK = self._search_rows(mine_S[is_open_S], "Flat")
        table_SK = exact_SK.where(exact_SK >= 0, table_SK)
        return table_SK, self._recall_of(table_SK, anchors_A)

    def _settled(self, scan: PairScan, mine_S: Tensor) -> Tensor:
        """What the scan says of anchors where rounding cannot have changed the order."""
        places_S = mine_S - self.bank.start
        similarity_SC = scan.similarity_SC[places_S]
        is_sure_S = (similarity_SC[:, :-1] - similarity_SC[:, 1:] > ROUNDING).all(dim=1)
        table_SK = self._empty_table()
        table_SK[places_S[is_sure_S]] = scan.rows_SC[places_S[is_sure_S], :-1]
        return table_SK

    def _search_rows(self, mine_S: Tensor, search: str, share: float = 0.0) -> Tensor:
        """[S, K] nearest rows of some rows of this shard, -1 for the others."""
        bank, table_SK = self.bank, self._empty_table()
        approximate = None
        if search not in EXACT:
            sample_QD = gather_sample(bank.features_SD, self.world)
            approximate = Approximate(search, self.recall, sample_QD)
        with raise_on_all_ranks(self.world, "building the search index"):
            shard = ShardSearch(
                bank.features_SD, bank.start, self.num_neighbours, self.memory_bytes, approximate
            )
        blocks = equal_blocks(self.world, mine_S - bank.start, ROWS_PER_BLOCK, ROWS_OF_ALL_RANKS)
        for positions_Q in blocks:
            is_real_Q = positions_Q >= 0
            rows_Q = (positions_Q + bank.start).where(is_real_Q, -1)
            queries_QD = take_rows(bank.features_SD, positions_Q)
            nearest = search_shards(shard, queries_QD, rows_Q, self.world)
            table_SK[positions_Q[is_real_Q]] = nearest.rows_QK[is_real_Q]
            self.advance(share / len(blocks))
        if not blocks:  # on no rank
            self.advance(share)
        return table_SK

    def _recall_of(self, table_SK: Tensor, anchors_A: Tensor) -> float:
        """Share of the exact search's neighbours that were found, on a sample of the anchors."""
        if self.search_name in EXACT or len(anchors_A) == 0:
            return 1.0
        sample_S = anchors_A[:: -(-len(anchors_A) // RECALL_SAMPLE)].sort().values
        mine_S = sample_S[(sample_S >= self.bank.start) & (sample_S < self.bank.stop)]
        places_S = mine_S - self.bank.start
        exact_SK = self._search_rows(mine_S, "Flat")[places_S]
        is_found_SK = (exact_SK[:, :, None] == table_SK[places_S][:, None]).any(dim=2)
        counts = torch.tensor([int(is_found_SK.sum()), is_found_SK.numel()], device=table_SK.device)
        found, wanted = reduce_sum(self.world, counts).tolist()
        return float(found / wanted)

    def _empty_table(self) -> Tensor:
        shape = (len(self.bank.features_SD), self.num_neighbours)
        return torch.full(shape, -1, device=self.bank.features_SD.device)

    def _share_of_scan(self) -> float:
        """The scan multiplies every pair once, the search every anchor with every row."""
        return 0.5 * self.bank.num_rows / (0.5 * self.bank.num_rows + self.num_anchors)


def _gather_rows(values_S: Tensor, bank: MemoryBank, world: World) -> Tensor:
    """[S, ...] of every shard -> [N, ...] on the coordinator; the same shape, unset, elsewhere."""
    longest = shard_range(bank.num_rows, 0, world.size)[1]
    padded = values_S.new_zeros(longest, *values_S.shape[1:])
    padded[: len(values_S)] = values_S
    gathered = gather_to_coordinator(world, padded)
    if gathered is None:
        return values_S.new_zeros(bank.num_rows, *values_S.shape[1:])
    # All shards before the last non-empty one are full, so cutting the end is enough.
    return gathered.flatten(0, 1)[: bank.num_rows]
