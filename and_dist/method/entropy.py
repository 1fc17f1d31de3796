"""Scan every pair of bank rows once: each row's entropy (Eq. 5), and candidates for neighbours.

Blocks of rows travel past the shards. The logits of a pair serve both of its rows, so of two blocks
only one streams past the other, and a tile of logits is used for both and dropped. A row needs two
sums over the bank, z = sum exp(l) and zl = sum l exp(l): its entropy is log z - zl / z. That takes
no mean vector, so half of one matrix product where attention takes two.

S rows of this shard, Q rows of one block, G = W * Q, X and Y any rows, C candidates, D feature;
in a tile J rows with a better candidate, U groups, V rows of a group, Z rows of some groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from and_dist.distributed.collectives import (
    equal_blocks,
    exchange_parts,
    gather_batch,
    raise_on_all_ranks,
    take_rows,
)
from and_dist.distributed.launch_env import AllRanksError
from and_dist.distributed.world import World
from and_dist.method.memory_bank import MemoryBank, all_shards
from and_dist.utils.progress import Advance, silently

LARGEST_BLOCK = {"cpu": 2048, "cuda": 16_384}
"""The most rows that stream at once; a tile is half as many by as many, large enough for torch's
operators to run at their full rate: an H100 scans 1.28 million rows in 28 s in blocks of 16,384, in
122 s in blocks of 4,096 and in 429 s in blocks of 2,048, where it waits for launches."""
SMALLEST_BLOCK = 64
MOST_GROUPS = 64
"""The most groups that the rows of a tile are strided into (best_of_strided_groups)."""
TINY = 1e-12
"""The least norm that is divided by, as in torch's normalize."""
UNIT = 1e-6
"""Rows whose norms are within this of 1 are compared by inner product, without a division."""


class PairScan(NamedTuple):
    """Hold what the scan found about the rows of this shard."""

    entropy_S: Tensor
    """Entropies, in float64."""
    similarity_SC: Tensor
    """Cosines of the C nearest other rows, best first, as exact as the tiles' products."""
    rows_SC: Tensor
    """Row ids of these candidates; -1 where the bank has fewer."""


@torch.no_grad()
def scan_pairs(
    bank: MemoryBank,
    world: World,
    temperature: float,
    memory_bytes: int,
    num_candidates: int = 0,
    advance: Advance = silently,
) -> PairScan:
    """Scan all pairs, with all ranks; `num_candidates` of 0 finds entropies alone."""
    scale = _agree_on_scale(bank, world, temperature)
    size = _block_size(bank, world.size, num_candidates, memory_bytes)
    with raise_on_all_ranks(world, "making room for the scan of the bank"):
        positions_S = torch.arange(len(bank.features_SD), device=bank.features_SD.device)
        found = _Found.empty(len(positions_S), num_candidates, scale, positions_S)
        tiles = _Tiles(bank, scale, found, size)
    blocks = equal_blocks(world, positions_S, size)
    for block, positions_Q in enumerate(blocks):
        rows_QD = take_rows(bank.features_SD, positions_Q)
        floor_Q = take_rows(found.floor(), positions_Q)
        everyone_GD, floor_G = gather_batch(world, [rows_QD, floor_Q])
        about_G = _Found.empty(len(floor_G), num_candidates, scale, floor_G)
        about_G.similarity_XC[:] = floor_G[:, None]
        with raise_on_all_ranks(world, "the scan of the bank"):
            tiles.load(everyone_GD, about_G)
            for pair in _pairs_of_blocks(block, size, len(positions_Q), bank.num_rows, world):
                tiles.process_pair(pair)
        positions_Q = positions_Q[positions_Q >= 0]
        found.merge_partial(positions_Q, _Found(*exchange_parts(world, list(about_G))))
        advance(1 / len(blocks))
    return found.result(scale)


def bytes_per_row(num_candidates: int) -> int:
    """Return what a scan keeps for every row of a shard: two sums, C cosines and C row ids."""
    return 2 * 8 + num_candidates * (4 + 8)


class _Scale(NamedTuple):
    """Define how logits are computed: l = x . y / temperature - shift."""

    dtype: torch.dtype
    temperature: float
    shift: float
    is_unit: bool


def _agree_on_scale(bank: MemoryBank, world: World, temperature: float) -> _Scale:
    """Return one scale for all pairs, since a tile's exponentials serve rows and columns alike.

    A row's own logit bounds its z from below, the largest norm bounds every logit from above. Where
    float32 cannot hold both, float64 can.
    """
    dtype = torch.promote_types(bank.features_SD.dtype, torch.float32)
    norm_S = torch.linalg.vector_norm(bank.features_SD, dim=1, dtype=dtype)
    is_bad_S = ~norm_S.isfinite()
    first_bad = bank.start + int(is_bad_S.int().argmax()) if is_bad_S.any() else bank.num_rows
    mine = [-norm_S.max().item(), norm_S.min().item()] if len(norm_S) else [0.0, torch.inf]
    summary = torch.tensor(
        [[*mine, float(is_bad_S.sum()), first_bad]], dtype=torch.float64, device=norm_S.device
    )
    (all_W,) = gather_batch(world, [summary])
    num_bad = int(all_W[:, 2].sum())
    if num_bad:
        first_bad = int(all_W[:, 3].min())
        raise AllRanksError(f"{num_bad} rows of the bank are not finite, row {first_bad} first")
    smallest, largest = all_W[:, 1].min().item(), -all_W[:, 0].min().item()
    lowest, highest = smallest**2 / temperature, largest**2 / temperature
    if lowest < max(0.0, highest - 60) - 40:
        dtype = torch.float64
    shift = max(0.0, highest - (600 if dtype == torch.float64 else 60))
    return _Scale(dtype, temperature, shift, 1 - UNIT <= smallest <= largest <= 1 + UNIT)


def _block_size(bank: MemoryBank, world_size: int, num_candidates: int, memory_bytes: int) -> int:
    """Return the rows of a block: so many that the blocks of all ranks, with what is found about
    them, fit a quarter of the memory, and the tiles another."""
    width = bank.features_SD.shape[1] * bank.features_SD.element_size()
    per_row = 3 * world_size * (width + bytes_per_row(num_candidates))
    size = LARGEST_BLOCK[bank.features_SD.device.type]
    per_pair = 3 / 2 * max(4, bank.features_SD.element_size())
    while size > SMALLEST_BLOCK and max(size * per_row, size**2 * per_pair) > memory_bytes / 4:
        size //= 2
    return size


class _Pair(NamedTuple):
    """Name a block that streams, by its place in G and in the bank, and a block of this shard."""

    streaming: slice
    first_row: int
    own: slice
    is_same: bool


def _pairs_of_blocks(
    block: int, size: int, length: int, num_rows: int, world: World
) -> Iterator[_Pair]:
    """Yield the pairs this rank computes when all ranks' blocks of number `block` stream past.

    Of two blocks (rank, number) the earlier streams past the later if their numbers are both even
    or both odd, otherwise the later past the earlier: every rank has as much to do in every step.
    """
    shards = all_shards(num_rows, world.size)
    num_own = shards[world.rank][1] - shards[world.rank][0]
    for rank, (start, stop) in enumerate(shards):
        real = min(stop - start - block * size, length)
        streaming = slice(rank * length, rank * length + max(real, 0))
        for own in range(-(-num_own // size) if real > 0 else 0):
            here, there = (world.rank, own), (rank, block)
            if here == there or ((own + block) % 2 == 0) == (there < here):
                rows = slice(own * size, min((own + 1) * size, num_own))
                yield _Pair(streaming, start + block * size, rows, here == there)


class _Found(NamedTuple):
    """Hold the sums of some rows and their best C candidates, so far."""

    z_X: Tensor
    zl_X: Tensor
    similarity_XC: Tensor
    """Cosines, or logits where all rows have unit norm, which order them alike."""
    rows_XC: Tensor

    @classmethod
    def empty(cls, length: int, num_candidates: int, scale: _Scale, like: Tensor) -> _Found:
        """Return sums of 0 and no candidates."""
        shape = (length, num_candidates)
        return cls(
            like.new_zeros(length, dtype=torch.float64),
            like.new_zeros(length, dtype=torch.float64),
            like.new_full(shape, -torch.inf, dtype=scale.dtype),
            like.new_full(shape, -1, dtype=torch.int64),
        )

    def floor(self) -> Tensor:
        """Return [X] the similarity that a new candidate has to exceed."""
        if self.similarity_XC.shape[1] == 0:
            return self.z_X
        return self.similarity_XC[:, -1]

    def update_topk(self, at: slice, similarity_XY: Tensor, first_row: int) -> None:
        """Keep the better candidates of a tile for the rows `at`; Y begins at bank row `first_row`.

        Most rows of a tile find nothing better than they have, so one pass over it finds the best
        of each group, and only rows whose floor is passed are looked at closer.
        """
        best_XU = best_of_strided_groups(similarity_XY, MOST_GROUPS)
        improved_J = (best_XU.amax(1) > self.floor()[at]).nonzero().squeeze(1)
        if len(improved_J) == 0:
            return
        num_candidates = self.similarity_XC.shape[1]
        # Each of the best C candidates is the best of its group or in a group with a better one,
        # so all of them lie in the C groups with the best bests.
        num_groups = min(num_candidates, best_XU.shape[1])
        groups_JU = best_XU[improved_J].topk(num_groups, dim=1).indices
        top_JC, column_JC = topk_within_groups(
            similarity_XY, improved_J, groups_JU, best_XU.shape[1], num_candidates
        )
        self._merge(improved_J + at.start, top_JC, column_JC + first_row)

    def merge_partial(self, positions_Q: Tensor, received: _Found) -> None:
        """Merge what all ranks, [W, Q, ...], found about a block of these rows."""
        count = len(positions_Q)
        self.z_X[positions_Q] += received.z_X.sum(dim=0)[:count]
        self.zl_X[positions_Q] += received.zl_X.sum(dim=0)[:count]
        rows_QC = received.rows_XC.transpose(0, 1).flatten(1)[:count]
        similarity_QC = received.similarity_XC.transpose(0, 1).flatten(1)[:count]
        self._merge(positions_Q, similarity_QC.masked_fill(rows_QC < 0, -torch.inf), rows_QC)

    def _merge(self, positions_J: Tensor, similarity_JC: Tensor, rows_JC: Tensor) -> None:
        similarity_JC = torch.cat([self.similarity_XC[positions_J], similarity_JC], dim=1)
        rows_JC = torch.cat([self.rows_XC[positions_J], rows_JC], dim=1)
        best_JC, order_JC = similarity_JC.topk(self.similarity_XC.shape[1], dim=1)
        self.similarity_XC[positions_J] = best_JC
        self.rows_XC[positions_J] = rows_JC.gather(1, order_JC)

    def result(self, scale: _Scale) -> PairScan:
        """Return entropies, and cosines and row ids of the candidates."""
        similarity_SC = self.similarity_XC
        if scale.is_unit:
            similarity_SC = similarity_SC * scale.temperature
        rows_SC = self.rows_XC.masked_fill(similarity_SC == -torch.inf, -1)
        return PairScan(self.z_X.log() - self.zl_X / self.z_X, similarity_SC, rows_SC)


def best_of_strided_groups(similarity_XY: Tensor, most_groups: int) -> Tensor:
    """Return [X, U] the best of each group of columns; group u has the columns u, u + U, u + 2U...

    U is the largest divisor that Y and `most_groups` share, so with six columns and at most four
    groups there are two: columns 0, 2, 4 and columns 1, 3, 5. Strided groups are reduced faster
    than contiguous ones: the reduction compares whole runs of U numbers at a time.
    """
    num_columns = similarity_XY.shape[1]
    num_groups = math.gcd(num_columns, most_groups)
    grouped_XVU: Tensor = similarity_XY.unflatten(1, (num_columns // num_groups, num_groups))
    best_XU: Tensor = grouped_XVU.amax(1)
    return best_XU


def topk_within_groups(
    similarity_XY: Tensor, rows_J: Tensor, groups_JU: Tensor, num_groups: int, count: int
) -> tuple[Tensor, Tensor]:
    """Return the `count` best columns [J, C] within some groups of some rows, and their columns.

    Of six columns in two groups, group 1 has the columns 1, 3 and 5: its place 2 is column
    2 * num_groups + 1 = 5.
    """
    num_columns = similarity_XY.shape[1]
    grouped_XVU: Tensor = similarity_XY.unflatten(1, (num_columns // num_groups, num_groups))
    inside_JUV = grouped_XVU[rows_J[:, None], :, groups_JU]
    per_group = inside_JUV.shape[2]
    inside_JZ = inside_JUV.flatten(1)
    top_JC, found_JC = inside_JZ.topk(min(count, inside_JZ.shape[1]), dim=1)
    place_JC, group_JC = found_JC % per_group, groups_JU.gather(1, found_JC // per_group)
    return top_JC, place_JC * num_groups + group_JC


class _Tiles:
    """Multiply blocks tile by tile, always in the same few buffers."""

    def __init__(self, bank: MemoryBank, scale: _Scale, mine: _Found, block_size: int) -> None:
        self._bank = bank
        self._scale = scale
        self._mine = mine
        self._height = block_size // 2
        self._buffers = torch.empty(
            3, self._height * block_size, dtype=scale.dtype, device=bank.features_SD.device
        )

    def load(self, everyone_GD: Tensor, about_G: _Found) -> None:
        """Take the blocks of all ranks that stream next, and what will be found about them."""
        self._queries_GD = everyone_GD.to(self._scale.dtype) / self._scale.temperature
        self._about_G = about_G

    def process_pair(self, pair: _Pair) -> None:
        """Add a pair of blocks to the sums and candidates of both, tile by tile."""
        rows_YD = self._bank.features_SD[pair.own].to(self._scale.dtype)
        for at in range(pair.streaming.start, pair.streaming.stop, self._height):
            here = slice(at, min(at + self._height, pair.streaming.stop))
            queries_XD = self._queries_GD[here]
            shape = (len(queries_XD), len(rows_YD))
            logits, work, spare = (b[: shape[0] * shape[1]].view(shape) for b in self._buffers)
            torch.mm(queries_XD, rows_YD.T, out=logits)
            if self._about_G.rows_XC.shape[1]:
                self._search(here, pair, self._similarity(logits, queries_XD, rows_YD, spare))
            if self._scale.shift:
                logits -= self._scale.shift
            torch.exp(logits, out=work)
            self._add(self._about_G.z_X, self._mine.z_X, here, pair, work)
            work *= logits
            self._add(self._about_G.zl_X, self._mine.zl_X, here, pair, work)

    def _similarity(self, logits: Tensor, queries: Tensor, rows: Tensor, spare: Tensor) -> Tensor:
        """Return what orders rows as their cosines do: logits of unit rows, or cosines."""
        if self._scale.is_unit:
            return logits
        torch.div(logits, queries.norm(dim=1, keepdim=True).clamp(min=TINY), out=spare)
        return spare.div_(rows.norm(dim=1).clamp(min=TINY))

    def _search(self, here: slice, pair: _Pair, similarity: Tensor) -> None:
        offset = here.start - pair.streaming.start
        if not pair.is_same:
            self._about_G.update_topk(here, similarity, self._bank.start + pair.own.start)
            self._mine.update_topk(pair.own, similarity.T, pair.first_row + offset)
            return
        # A row is no neighbour of itself, but its logit counts in the sums that come after.
        own = similarity.diagonal(offset)
        kept = own.clone()
        own.fill_(-torch.inf)
        self._about_G.update_topk(here, similarity, self._bank.start + pair.own.start)
        own.copy_(kept)

    def _add(
        self, about_G: Tensor, mine_S: Tensor, here: slice, pair: _Pair, terms: Tensor
    ) -> None:
        # `about_G[here] += ...` would copy the sum to its place once more.
        about_G[here].add_(terms.sum(dim=1))
        if not pair.is_same:
            mine_S[pair.own].add_(terms.sum(dim=0))
