"""Discover neighbourhoods between rounds (Eq. 1, 5, 6): entropies, anchors, their nearest rows.

Every rank streams its own rows, block by block, past all shards, exactly as a training step does
with its batch; the results that come back concern its own rows. The coordinator, rank 0 in role
only, ranks, chooses, checks and broadcasts. Discovery reads the bank alone, no image and no label.

N all rows, S rows of this shard, A anchors, M anchors of this shard, Q queries of one block,
K neighbours, D feature.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from and_dist.config.discovery_memory import MEGABYTE, auto_memory_mb, held_bytes
from and_dist.distributed.collectives import (
    broadcast_from_coordinator,
    equal_blocks,
    gather_batch,
    gather_to_coordinator,
    on_coordinator,
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
    RECALL,
    ROUNDING,
    Approximate,
    ShardSearch,
    gather_sample,
    search_shards,
)
from and_dist.method.neighbour_table import Neighbourhoods, check_neighbours
from and_dist.utils.progress import Advance, silently

log = logging.getLogger(__name__)

ROWS_PER_BLOCK, ROWS_OF_ALL_RANKS = 2048, 1 << 15
"""The largest numbers of rows that are searched for at a time, of one rank and of all together."""
RECALL_SAMPLE = 1024
"""Anchors whose neighbours are searched exactly too, where the search is approximate."""


@dataclass(frozen=True)
class SearchOptions:
    """Say how well an approximate search has to find, and how much memory a search may take."""

    recall: float = RECALL
    """Share of the exact neighbours that an approximate search has to find."""
    memory_bytes: int | None = None
    """Memory of one rank; None chooses it by the device, as discovery.memory_mb=auto does."""


class Scale(NamedTuple):
    """Hold the rows of a bank and the bytes of each."""

    num_rows: int
    row_bytes: int


def discover(  # noqa: PLR0913 - other programs rely on this signature
    bank: MemoryBank,
    world: World,
    round_index: int,
    num_rounds: int,
    num_neighbours: int,
    temperature: float,
    search: str = "Flat",
    *,
    share: float | None = None,
    options: SearchOptions = SearchOptions(),
    progress: Advance = silently,
) -> Neighbourhoods:
    """Return the neighbourhoods of round `round_index` of `num_rounds`, equal on all ranks.

    All ranks call it together. `progress` is called on every rank equally often, between
    collectives, so it may hold a collective of its own.

    Args:
        bank: This rank's shard of N rows.
        world: The ranks, from open_world().
        round_index: r, from 1; N * r / R rows of lowest entropy become anchors.
        num_rounds: R, the rounds after round 0.
        num_neighbours: K, the neighbours of an anchor.
        temperature: tau of the entropy.
        search: `Flat` or `fused`, which are exact, or a faiss factory string.
        share: Share of the rows that every round adds to the anchors; None is 1 / R.
        options: Recall and memory of the search.
        progress: Function that is told the share that is done.

    Returns:
        neighbours_NK [N, K], -1 for rows that are no anchors; entropy_N [N]; anchors_A, by
        ascending entropy; and the recall of an approximate search.

    Example:
        >>> rows_SD = torch.nn.functional.normalize(torch.randn(100, 8), dim=1)
        >>> bank = and_dist.MemoryBank(rows_SD, start=0, num_rows=100, update_rate=0.5)
        >>> with and_dist.open_world("cpu") as world:
        ...     found = and_dist.discover(bank, world, 1, 4, num_neighbours=1, temperature=0.1)
        >>> found.anchors_A.shape, found.neighbours_NK.shape
        (torch.Size([25]), torch.Size([100, 1]))
    """
    dim = bank.features_SD.shape[1]
    memory_bytes = options.memory_bytes
    check_discovery(bank.num_rows, dim, world.size, num_neighbours, search, memory_bytes)
    if memory_bytes is None:
        scale = Scale(bank.num_rows, dim * bank.features_SD.element_size())
        memory_mb = choose_memory_mb(world, scale, num_neighbours, search)
        options = replace(options, memory_bytes=MEGABYTE * memory_mb)
    count = num_anchors(bank.num_rows, round_index, num_rounds, share)
    passes = _Passes(bank, world, num_neighbours, count, search, options, progress)
    scan = passes.scan(temperature)
    entropy_N = _gather_rows(scan.entropy_S, bank, world)
    anchors_A = torch.empty(count, dtype=torch.int64, device=entropy_N.device)
    anchors_A = on_coordinator(
        world, "choosing the anchors", lambda: _choose_anchors(entropy_N, count), like=anchors_A
    )
    broadcast_from_coordinator(world, entropy_N)
    table_SK, found_share = passes.search(scan, anchors_A)
    neighbours_NK = _gather_rows(table_SK, bank, world)

    def checked_neighbours() -> Tensor:
        check_neighbours(neighbours_NK[anchors_A], anchors_A, bank.num_rows)
        return neighbours_NK

    neighbours_NK = on_coordinator(
        world, "checking the neighbours", checked_neighbours, like=neighbours_NK
    )
    return Neighbourhoods(neighbours_NK, entropy_N, anchors_A, found_share)


def _choose_anchors(entropy_N: Tensor, count: int) -> Tensor:
    """Return the rows of lowest entropy; RuntimeError where an entropy is not finite."""
    if not bool(entropy_N.isfinite().all()):
        num_bad = int((~entropy_N.isfinite()).sum())
        raise RuntimeError(f"the entropy of {num_bad} rows is not finite")
    return select_anchors(entropy_N, count)


def choose_memory_mb(world: World, scale: Scale, num_neighbours: int, search: str) -> int:
    """Return the megabytes of discovery.memory_mb=auto, equal on all ranks."""
    free_bytes = None
    if world.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(world.device)
        (free_W,) = gather_batch(world, [torch.tensor([free], device=world.device)])
        free_bytes = float(free_W.min())
    longest = shard_range(scale.num_rows, 0, world.size)[1]
    held = held_bytes(longest * scale.row_bytes, scale.num_rows, num_neighbours)
    needed = least_memory_bytes(scale.num_rows, world.size, num_neighbours, search)
    return auto_memory_mb(free_bytes, held, needed)


def least_memory_bytes(num_rows: int, world_size: int, num_neighbours: int, search: str) -> int:
    """Return the least memory with which a rank discovers.

    The blocks that stream take as much again as what is kept for the rows of the longest shard.
    """
    longest = shard_range(num_rows, 0, world_size)[1]
    candidates = num_neighbours + 1 if search == "fused" else 0
    return 2 * longest * bytes_per_row(candidates)


def check_discovery(
    num_rows: int,
    dim: int,
    world_size: int,
    num_neighbours: int,
    search: str,
    memory_bytes: int | None,
) -> None:
    """Raise ValueError for an unknown search, too few rows, or too little memory for a shard."""
    if num_neighbours >= num_rows:
        raise ValueError(
            f"curriculum.neighbours={num_neighbours} needs more than {num_neighbours} images, "
            f"the bank has {num_rows} rows"
        )
    lengths = [stop - start for start, stop in all_shards(num_rows, world_size)]
    check_search(search, dim, min(length for length in lengths if length))
    needed = least_memory_bytes(num_rows, world_size, num_neighbours, search)
    if memory_bytes is not None and needed > memory_bytes:
        raise ValueError(
            f"discovery.memory_mb={memory_bytes / 1e6:g} is too little: discovery.search={search} "
            f"with curriculum.neighbours={num_neighbours} takes {needed / 1e6:,.0f} MB for the "
            f"{lengths[0]:,} rows of a shard; allow more, or start more ranks"
            + (", or take Flat" if search == "fused" else "")
        )


@dataclass(frozen=True)
class _Passes:
    """Make the two passes of one discovery over the bank: the scan and the search."""

    bank: MemoryBank
    world: World
    num_neighbours: int
    num_anchors: int
    search_name: str
    options: SearchOptions
    progress: Advance

    def scan(self, temperature: float) -> PairScan:
        """Return this shard's entropies and, for a fused search, candidates for neighbours."""
        candidates = self.num_neighbours + 1 if self.search_name == "fused" else 0
        share = 1.0 if candidates else self._share_of_scan()
        return scan_pairs(
            self.bank,
            self.world,
            temperature,
            self._memory_bytes(),
            candidates,
            lambda part: self.progress(share * part),
        )

    def search(self, scan: PairScan, anchors_A: Tensor) -> tuple[Tensor, float]:
        """Return the nearest rows [S, K] of this shard's anchors, -1 for its other rows, and the
        recall, which is 1 where the search is exact."""
        mine_M = self._of_this_shard(anchors_A).sort().values
        if self.search_name == "fused":
            table_SK = self._settled(scan, mine_M)
        else:
            table_SK = self._search_rows(mine_M, self.search_name, 1 - self._share_of_scan())
        # A search may find too few neighbours of a row; these rows are searched for exactly.
        is_open_M = (table_SK[mine_M - self.bank.start] < 0).any(dim=1)
        exact_SK = self._search_rows(mine_M[is_open_M], "Flat")
        table_SK = exact_SK.where(exact_SK >= 0, table_SK)
        return table_SK, self._recall_of(table_SK, anchors_A)

    def _settled(self, scan: PairScan, mine_M: Tensor) -> Tensor:
        """Return the scan's neighbours of those anchors whose order rounding cannot change."""
        places_M = mine_M - self.bank.start
        similarity_MC = scan.similarity_SC[places_M]
        is_sure_M = (similarity_MC[:, :-1] - similarity_MC[:, 1:] > ROUNDING).all(dim=1)
        table_SK = self._empty_table()
        table_SK[places_M[is_sure_M]] = scan.rows_SC[places_M[is_sure_M], :-1]
        return table_SK

    def _search_rows(self, mine_M: Tensor, search: str, share: float = 0.0) -> Tensor:
        """Return the nearest rows [S, K] of some rows of this shard, -1 for the others.

        The search is that `share` of all work, as far as `progress` is concerned.
        """
        bank, table_SK = self.bank, self._empty_table()
        approximate = None
        if search not in EXACT:
            sample_QD = gather_sample(bank.features_SD, self.world)
            approximate = Approximate(search, self.options.recall, sample_QD)
        with raise_on_all_ranks(self.world, "building the search index"):
            shard = ShardSearch(
                bank.features_SD,
                bank.start,
                self.num_neighbours,
                self._memory_bytes(),
                approximate,
            )
        if shard.limit and self.world.is_coordinator:
            log.warning("discovery.search=%s: %s", search, shard.limit)
        blocks = equal_blocks(self.world, mine_M - bank.start, ROWS_PER_BLOCK, ROWS_OF_ALL_RANKS)
        for positions_Q in blocks:
            is_real_Q = positions_Q >= 0
            rows_Q = (positions_Q + bank.start).where(is_real_Q, -1)
            queries_QD = take_rows(bank.features_SD, positions_Q)
            nearest = search_shards(shard, queries_QD, rows_Q, self.world)
            table_SK[positions_Q[is_real_Q]] = nearest.rows_QK[is_real_Q]
            self.progress(share / len(blocks))
        if not blocks:  # no rank has any row to search for
            self.progress(share)
        return table_SK

    def _recall_of(self, table_SK: Tensor, anchors_A: Tensor) -> float:
        """Return the share of the exact neighbours that were found, on a sample of the anchors."""
        if self.search_name in EXACT or len(anchors_A) == 0:
            return 1.0
        sample_A = anchors_A[:: -(-len(anchors_A) // RECALL_SAMPLE)].sort().values
        mine_M = self._of_this_shard(sample_A)
        places_M = mine_M - self.bank.start
        exact_MK = self._search_rows(mine_M, "Flat")[places_M]
        is_found_MK = (exact_MK[:, :, None] == table_SK[places_M][:, None]).any(dim=2)
        counts = torch.tensor([int(is_found_MK.sum()), is_found_MK.numel()], device=table_SK.device)
        found, wanted = reduce_sum(self.world, counts).tolist()
        return float(found / wanted)

    def _of_this_shard(self, anchors_A: Tensor) -> Tensor:
        """Return those anchors whose rows lie in this shard, in the same order."""
        return anchors_A[(anchors_A >= self.bank.start) & (anchors_A < self.bank.stop)]

    def _empty_table(self) -> Tensor:
        """Return a table [S, K] without neighbours."""
        shape = (len(self.bank.features_SD), self.num_neighbours)
        return torch.full(shape, -1, device=self.bank.features_SD.device)

    def _memory_bytes(self) -> int:
        """Return the memory of one rank, which is known once the passes begin."""
        assert self.options.memory_bytes is not None
        return self.options.memory_bytes

    def _share_of_scan(self) -> float:
        """Return the scan's share of all work.

        The scan multiplies every pair once, the search every anchor with every row.
        """
        return 0.5 * self.bank.num_rows / (0.5 * self.bank.num_rows + self.num_anchors)


def _gather_rows(values_S: Tensor, bank: MemoryBank, world: World) -> Tensor:
    """Return all shards' [S, ...] as [N, ...] on the coordinator, zeros of this shape elsewhere."""
    longest = shard_range(bank.num_rows, 0, world.size)[1]
    padded = values_S.new_zeros(longest, *values_S.shape[1:])
    padded[: len(values_S)] = values_S
    gathered = gather_to_coordinator(world, padded)
    if gathered is None:
        return values_S.new_zeros(bank.num_rows, *values_S.shape[1:])
    # All shards before the last non-empty one are full, so cutting the end is enough.
    return gathered.flatten(0, 1)[: bank.num_rows]
