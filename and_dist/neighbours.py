"""Nearest rows by cosine: faiss finds candidates in a shard, float64 ranks them, ties by row.

faiss works in float32 and orders ties as its blocks fall. So it is asked for a few rows more than
wanted; those are ranked by their float64 similarity, and a query whose last candidate comes within
float32's rounding of the last wanted one is asked again, wider, until it cannot matter.

Q queries, S rows of this shard, C candidates, K wanted, D feature.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import faiss
import torch
from torch import Tensor
from torch.nn import functional

from and_dist.collectives import exchange_parts, failing_together, gather_batch
from and_dist.world import World

ROUNDING = 1e-5
"""More than float32's error of a product of two unit vectors of a few thousand entries."""
SPARE = 8


class Nearest(NamedTuple):
    """The best K rows for each query, best first; (-inf, -1) where there are fewer."""

    similarity_QK: Tensor
    rows_QK: Tensor


class ShardIndex:
    """A faiss index over the rows [start, start + S) of a bank."""

    def __init__(self, features_SD: Tensor, start: int, search: str) -> None:
        self.unit_SD = _unit(features_SD)
        self.start = start
        self.is_exact = search == "Flat"
        self._index: Any = _build_index(self.unit_SD, search)

    def search(self, queries_QD: Tensor, own_rows_Q: Tensor, num_wanted: int) -> Nearest:
        """The K nearest rows of this shard, the query's own row (or -1: none) left out by index."""
        queries_QD = _unit(queries_QD)
        own_rows_Q = own_rows_Q.cpu()
        num_local = len(self.unit_SD)
        num_candidates = min(num_wanted + 1 + SPARE, num_local)
        best = _nothing(len(queries_QD), num_wanted)
        pending_Q = torch.arange(len(queries_QD) if num_local else 0)
        while len(pending_Q):
            found, floor_Q = self._candidates(
                queries_QD[pending_Q], own_rows_Q[pending_Q], num_candidates
            )
            ranked = best_of([found], num_wanted)
            best.similarity_QK[pending_Q] = ranked.similarity_QK
            best.rows_QK[pending_Q] = ranked.rows_QK
            if not self.is_exact or num_candidates == num_local:
                break
            is_open_Q = floor_Q + ROUNDING >= ranked.similarity_QK[:, -1]
            pending_Q = pending_Q[is_open_Q]
            num_candidates = min(4 * num_candidates, num_local)
        return best

    def _candidates(
        self, queries_QD: Tensor, own_rows_Q: Tensor, num_candidates: int
    ) -> tuple[Nearest, Tensor]:
        """What faiss found, similarities anew in float64, and the lowest it looked at."""
        faiss.omp_set_num_threads(torch.get_num_threads())
        similarity, local = self._index.search(queries_QD.float().numpy(), num_candidates)
        local_QC = torch.from_numpy(local)
        rows_QC = local_QC + self.start
        is_found_QC = (local_QC >= 0) & (rows_QC != own_rows_Q[:, None])
        candidates_QCD = self.unit_SD[local_QC.clamp(min=0)].double()
        exact_QC = (candidates_QCD * queries_QD.double()[:, None]).sum(dim=2)
        found = Nearest(
            exact_QC.masked_fill(~is_found_QC, -torch.inf), rows_QC.masked_fill(~is_found_QC, -1)
        )
        return found, torch.from_numpy(similarity[:, -1]).double()


def search_shards(
    index: ShardIndex, queries_QD: Tensor, own_rows_Q: Tensor, num_wanted: int, world: World
) -> Nearest:
    """The K nearest rows of the whole bank for this rank's queries; Q is equal on every rank."""
    queries_GD, own_rows_G = gather_batch(world, [queries_QD, own_rows_Q])
    with failing_together(world, "the neighbour search"):
        partial = index.search(queries_GD, own_rows_G, num_wanted)
    received = exchange_parts(world, [part.to(world.device) for part in partial])
    similarity_WQK, rows_WQK = (tensor.cpu() for tensor in received)
    parts = [Nearest(*part) for part in zip(similarity_WQK, rows_WQK, strict=True)]
    return best_of(parts, num_wanted)


def best_of(parts: list[Nearest], num_wanted: int) -> Nearest:
    """The best K of several candidate lists over disjoint rows; ties go to the lower row."""
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
    padding = _nothing(len(rows_QC), missing)
    return Nearest(*(torch.cat(pair, dim=1) for pair in zip(found, padding, strict=True)))


def _nothing(num_queries: int, num_wanted: int) -> Nearest:
    return Nearest(
        torch.full((num_queries, num_wanted), -torch.inf, dtype=torch.float64),
        torch.full((num_queries, num_wanted), -1),
    )


def _unit(features_XD: Tensor) -> Tensor:
    features_XD = features_XD.detach().cpu()
    wide = torch.promote_types(features_XD.dtype, torch.float32)
    return functional.normalize(features_XD.to(wide), dim=1)


def create_index(dim: int, search: str) -> Any:
    """An empty faiss index by inner product; ValueError for what is no factory string."""
    try:
        return faiss.index_factory(dim, search, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise ValueError(
            f"discovery.search={search!r} is no faiss index for {dim} dimensions; "
            "right are such as Flat, IVF1024,Flat or HNSW32"
        ) from None


def _build_index(unit_SD: Tensor, search: str) -> Any:
    index = create_index(unit_SD.shape[1], search)
    faiss.omp_set_num_threads(torch.get_num_threads())
    rows = unit_SD.float().numpy()
    if len(rows) and not index.is_trained:
        index.train(rows)
    if len(rows):
        index.add(rows)
    return index
