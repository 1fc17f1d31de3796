"""Find nearest rows by cosine: a search finds candidates in a shard, float64 ranks them (Eq. 1).

faiss works in float32 and orders ties as its blocks fall. So it is asked for a few rows more than
wanted; those are ranked by their float64 similarity, ties by the lower row. A query for which a row
that was left out may come within float32's rounding of the last wanted one is asked again, wider,
until it cannot matter.

Q queries, q some of them, S rows of this shard, C candidates, K wanted, D feature.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from and_dist.distributed.collectives import exchange_parts, gather_batch, raise_on_all_ranks
from and_dist.distributed.world import World
from and_dist.method.entropy import TINY
from and_dist.method.faiss_search import (
    ApproximateSearch,
    ExactSearch,
    Recall,
    evenly,
    unit_float32,
)

ROUNDING = 1e-5
"""A bound on float32's error of the product of two unit vectors with a few thousand entries."""
SPARE = 8
MEMORY_BYTES = 200_000_000
RECALL = 0.98
SAMPLE = 1024
"""Queries on which an index is tried to see how wide it has to look; enough for 1 % of recall."""


class Nearest(NamedTuple):
    """Holds the best K rows for each query, best first; (-inf, -1) where there are fewer."""

    similarity_QK: Tensor
    rows_QK: Tensor


class Approximate(NamedTuple):
    """Names an approximate index, and the recall it has to reach on some queries."""

    name: str
    recall: float
    sample_QD: Tensor


class ShardSearch:
    """Searches the rows [start, start + S) of a bank."""

    def __init__(
        self,
        features_SD: Tensor,
        start: int,
        num_wanted: int,
        memory_bytes: int = MEMORY_BYTES,
        approximate: Approximate | None = None,
    ) -> None:
        """Set up faiss over the shard, by an approximate index if one is given."""
        self.start = start
        self.num_wanted = num_wanted
        self.is_exact = approximate is None
        self._features_SD = features_SD.detach()
        self._rank_bytes = memory_bytes // 8
        self._search: ExactSearch | ApproximateSearch | None = None
        if len(features_SD) and approximate is None:
            self._search = ExactSearch(self._features_SD, memory_bytes)
        elif len(features_SD) and approximate is not None:
            recall = Recall(approximate.recall, num_wanted, approximate.sample_QD)
            self._search = ApproximateSearch(
                self._features_SD, approximate.name, recall, memory_bytes
            )

    @property
    def limit(self) -> str:
        """Return what keeps an approximate search from its recall, or an empty text."""
        return self._search.limit if isinstance(self._search, ApproximateSearch) else ""

    def nearest(self, queries_QD: Tensor, own_rows_Q: Tensor) -> Nearest:
        """Return the K nearest rows of this shard, without each query's own row (-1: none)."""
        device, num_local = queries_QD.device, len(self._features_SD)
        best = _nothing(len(queries_QD), self.num_wanted, device)
        pending_Q = torch.arange(len(queries_QD) if self._search else 0, device=device)
        num_candidates = min(self.num_wanted + 1 + SPARE, num_local)
        while len(pending_Q):
            found, floor_Q = self._candidates(
                queries_QD[pending_Q], own_rows_Q[pending_Q], num_candidates
            )
            ranked = best_of([found], self.num_wanted)
            best.similarity_QK[pending_Q] = ranked.similarity_QK
            best.rows_QK[pending_Q] = ranked.rows_QK
            if num_candidates == num_local or not self.is_exact:
                break
            pending_Q = pending_Q[floor_Q + ROUNDING >= ranked.similarity_QK[:, -1]]
            num_candidates = min(4 * num_candidates, num_local)
        return best

    def _candidates(
        self, queries_QD: Tensor, own_rows_Q: Tensor, count: int
    ) -> tuple[Nearest, Tensor]:
        """Return candidates with similarities in float64, and how similar the rest can be."""
        assert self._search is not None
        _, places_QC, floor_Q = self._search.candidates(unit_float32(queries_QD), count)
        rows_QC = places_QC + self.start
        is_other_QC = (places_QC >= 0) & (rows_QC != own_rows_Q[:, None])
        exact_QC = self._cosines(queries_QD, places_QC.clamp(min=0))
        found = Nearest(
            exact_QC.masked_fill(~is_other_QC, -torch.inf), rows_QC.masked_fill(~is_other_QC, -1)
        )
        return found, floor_Q

    def _cosines(self, queries_QD: Tensor, places_QC: Tensor) -> Tensor:
        """Return cosines in float64, a few queries at a time; equal rows have equal ones."""
        per_query = 2 * 8 * places_QC.shape[1] * queries_QD.shape[1]
        size = max(1, self._rank_bytes // per_query)
        unit_QD = functional.normalize(queries_QD.double(), dim=1)
        cosines = []
        for unit_qD, places_qC in zip(unit_QD.split(size), places_QC.split(size), strict=True):
            candidates_qCD = self._features_SD[places_qC].double()
            norm_qC1 = torch.linalg.vector_norm(candidates_qCD, dim=2, keepdim=True)
            candidates_qCD /= norm_qC1.clamp_(min=TINY)
            candidates_qCD *= unit_qD[:, None]
            cosines.append(candidates_qCD.sum(dim=2))
        return torch.cat(cosines)


def gather_sample(features_SD: Tensor, world: World) -> Tensor:
    """Return rows of all shards alike, on all ranks: an index has to find neighbours of foreign
    rows."""
    share = -(-SAMPLE // world.size)
    mine_QD = features_SD.new_zeros(share, features_SD.shape[1])
    rows_QD = evenly(features_SD, share)
    mine_QD[: len(rows_QD)] = rows_QD
    (sample_GD,) = gather_batch(world, [mine_QD])
    return sample_GD[sample_GD.any(dim=1)]


def search_shards(
    shard: ShardSearch, queries_QD: Tensor, own_rows_Q: Tensor, world: World
) -> Nearest:
    """Return the K nearest rows of the whole bank for this rank's queries.

    Q is equal on every rank.
    """
    queries_GD, own_rows_G = gather_batch(world, [queries_QD, own_rows_Q])
    with raise_on_all_ranks(world, "the neighbour search"):
        partial = shard.nearest(queries_GD, own_rows_G)
    received = exchange_parts(world, list(partial))
    return best_of([Nearest(*part) for part in zip(*received, strict=True)], shard.num_wanted)


def best_of(parts: list[Nearest], num_wanted: int) -> Nearest:
    """Return the best K of several candidate lists over disjoint rows; ties go to the lower row."""
    similarity_QC = torch.cat([part.similarity_QK for part in parts], dim=1)
    rows_QC = torch.cat([part.rows_QK for part in parts], dim=1)
    by_row_QC = rows_QC.argsort(dim=1, stable=True)
    by_similarity_QC = similarity_QC.gather(1, by_row_QC).argsort(
        dim=1, descending=True, stable=True
    )
    order_QK = by_row_QC.gather(1, by_similarity_QC)[:, :num_wanted]
    found = Nearest(similarity_QC.gather(1, order_QK), rows_QC.gather(1, order_QK))
    missing = num_wanted - found.rows_QK.shape[1]
    if missing <= 0:
        return found
    padding = _nothing(len(rows_QC), missing, rows_QC.device)
    return Nearest(*(torch.cat(pair, dim=1) for pair in zip(found, padding, strict=True)))


def _nothing(num_queries: int, num_wanted: int, device: torch.device) -> Nearest:
    """Return an answer without any row."""
    shape = (num_queries, num_wanted)
    return Nearest(
        torch.full(shape, -torch.inf, dtype=torch.float64, device=device),
        torch.full(shape, -1, device=device),
    )
