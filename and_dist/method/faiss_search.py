"""Search with faiss: exactly, where the rows lie, or by approximate indexes of its factory.

An index holds a copy of its rows, the exact search none: faiss reads float32 rows of unit norm in
place and others a chunk at a time. No other module imports faiss.

Q queries, S rows, C candidates, D feature, X any rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

EXACT = ("Flat", "fused")
"""The exact searches; `fused` is no index of faiss: the scan of all pairs finds neighbours too."""
ROWS_PER_CELL = 64
"""The rows that k-means is given for each cell of an inverted file; faiss warns below 39."""
MOST_TRIED = 4096
"""The most cells with which an index is filled on trial, since that takes their square."""
UNIT = 1e-6
"""Rows whose norms are within this of 1 are compared by inner product as they are."""
ROWS_AT_ONCE = 2048
"""Rows of a shard that faiss multiplies with its queries: 10 % faster than its own 1,024."""
MOST_ON_GPU = 2048
"""The most candidates that faiss selects on a GPU, and the most cells that a query probes there. It
has 16,384 with cuVS, which nobody asks for here: cells are searched by another algorithm then."""
GPU_SCRATCH_BYTES = 2**28
"""The memory of a GPU that faiss keeps for the whole process, once it has searched there."""
QUERIES_AT_ONCE = 64
"""Queries whose many candidates torch selects at a time, where faiss cannot."""


class Candidates(NamedTuple):
    """Hold what was found for each query, and how similar the rest can be."""

    similarity_QC: Tensor
    places_QC: Tensor
    """Places in the shard, -1 for none."""
    floor_Q: Tensor
    """The highest similarity that a row which was left out can have."""


class Recall(NamedTuple):
    """Ask for a share of the K nearest rows of a sample of queries."""

    share: float
    num_nearest: int
    sample_QD: Tensor


def check_search(search: str, dim: int, shortest_shard: int) -> None:
    """Raise ValueError for what is no index, or has more cells than a shard has rows."""
    if search in EXACT:
        return
    index = _create(dim, search)
    inverted_file = load_faiss().try_extract_index_ivf(index)
    cells = 1 if inverted_file is None else inverted_file.nlist
    if cells < 1 or re.search(
        r"(HNSW|NSG)0*[01](?!\d)", search
    ):  # no links: faiss ends the process
        raise ValueError(f"discovery.search={search} has no cells, or no links to search along")
    if cells > shortest_shard:
        raise ValueError(
            f"discovery.search={search} cuts a shard into {cells:,} cells, but the shortest shard "
            f"has {shortest_shard:,} rows; take fewer cells, fewer ranks or Flat"
        )
    if inverted_file is not None:
        inverted_file.cp.niter, inverted_file.cp.min_points_per_centroid = 1, 1
    if cells <= MOST_TRIED:
        _fill(index, search, min(shortest_shard, max(cells, 1000)))


class ExactSearch:
    """Compares a query with every row of the shard."""

    def __init__(self, features_SD: Tensor, memory_bytes: int) -> None:
        """Keep the rows; copy nothing if they are float32 rows of unit norm."""
        _limit_threads()
        self._features_SD = features_SD
        self._memory_bytes = memory_bytes
        self._chunk = max(1, memory_bytes // (8 * 4 * features_SD.shape[1]))
        self._is_ready = _is_unit_float32(features_SD)
        self._resources = _gpu_resources(features_SD.device)

    def candidates(self, queries_QD: Tensor, count: int) -> Candidates:
        """Return the best `count` rows of every chunk."""
        found = []
        floor_Q = torch.full((len(queries_QD),), -torch.inf, device=queries_QD.device)
        for first, rows_XD in self._chunks():
            similarity_QC, places_QC = self._nearest(queries_QD, rows_XD, min(count, len(rows_XD)))
            found.append((similarity_QC, places_QC + first))
            if count < len(rows_XD):
                floor_Q = floor_Q.maximum(similarity_QC[:, -1])
        similarity, places = zip(*found, strict=True)
        return Candidates(torch.cat(similarity, dim=1), torch.cat(places, dim=1), floor_Q)

    def _chunks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield an eighth of the memory at a time, or all rows if none has to be copied."""
        size = len(self._features_SD) if self._is_ready else self._chunk
        for first in range(0, len(self._features_SD), size):
            yield first, unit_float32(self._features_SD[first : first + size])

    def _nearest(self, queries_QD: Tensor, rows_XD: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return similarities and places of the nearest rows, best first, where the rows lie."""
        faiss = load_faiss()
        metric, device = faiss.METRIC_INNER_PRODUCT, queries_QD.device.index
        found: tuple[Tensor, Tensor]
        if self._resources is None:
            found = faiss.knn(queries_QD, rows_XD, count, metric=metric)
        elif count <= MOST_ON_GPU:
            found = faiss.knn_gpu(
                self._resources, queries_QD, rows_XD, count, metric=metric, device=device
            )
        else:
            found = nearest_by_torch(queries_QD, rows_XD, count, self._memory_bytes // 8)
        return found


def nearest_by_torch(
    queries_QD: Tensor, rows_XD: Tensor, count: int, memory_bytes: int
) -> tuple[Tensor, Tensor]:
    """Return similarities and places [Q, C] of the nearest rows, best first, for any C.

    A few queries at a time, and as many rows as their similarities fit the memory with what is
    selected of them.
    """
    size = max(count, memory_bytes // (4 * 4 * QUERIES_AT_ONCE))
    found = []
    for queries_qD in queries_QD.split(QUERIES_AT_ONCE):
        best = (queries_qD @ rows_XD[:size].T).topk(count, dim=1)
        similarity_qC, places_qC = best.values, best.indices
        for first in range(size, len(rows_XD), size):
            tile_qX = queries_qD @ rows_XD[first : first + size].T
            more = tile_qX.topk(min(count, tile_qX.shape[1]), dim=1)
            best = torch.cat([similarity_qC, more.values], dim=1).topk(count, dim=1)
            places_qC = torch.cat([places_qC, more.indices + first], dim=1).gather(1, best.indices)
            similarity_qC = best.values
        found.append((similarity_qC, places_qC))
    similarity, places = zip(*found, strict=True)
    return torch.cat(similarity), torch.cat(places)


class ApproximateSearch:
    """Holds an index that looks at as much of the shard as a sample needs to be found."""

    def __init__(self, features_SD: Tensor, search: str, wanted: Recall, memory_bytes: int) -> None:
        """Train the index on some of the rows, fill it with all, and set its breadth."""
        _limit_threads()
        faiss = load_faiss()
        index = _create(features_SD.shape[1], search)
        inverted_file = faiss.try_extract_index_ivf(index)
        self._resources = _gpu_resources(features_SD.device)
        self.limit = ""
        """The reason why the index finds less than was wanted; empty if it does not."""
        self._device = torch.device("cpu")
        cells = 1024 if inverted_file is None else inverted_file.nlist
        sample_XD = unit_float32(evenly(features_SD, cells * ROWS_PER_CELL))
        if inverted_file is not None:
            inverted_file.cp.min_points_per_centroid = 1  # the user chose the cells: no warnings
        if inverted_file is not None and self._resources is not None:
            self._device = features_SD.device
            index = faiss.index_cpu_to_gpu(self._resources, self._device.index, index)
        index.train(sample_XD.to(self._device))
        chunk = max(1, memory_bytes // (8 * 4 * features_SD.shape[1]))
        for rows_XD in features_SD.split(chunk):
            index.add(unit_float32(rows_XD).to(self._device))
        self._index = index
        self._breadth = "nprobe" if inverted_file is not None else "efSearch"
        self._widest = len(features_SD) if inverted_file is None else inverted_file.nlist
        self.limit = self._look_as_wide_as_it_takes(ExactSearch(features_SD, memory_bytes), wanted)

    def candidates(self, queries_QD: Tensor, count: int) -> Candidates:
        """Return the best rows of those looked at; how good the others are is unknown."""
        found = self._index.search(queries_QD.to(self._device), count)
        similarity_QC, places_QC = (tensor.to(queries_QD.device) for tensor in found)
        return Candidates(
            similarity_QC, places_QC, torch.full_like(similarity_QC[:, 0], -torch.inf)
        )

    def _look_as_wide_as_it_takes(self, exact: ExactSearch, wanted: Recall) -> str:
        """Double what a query looks at until enough of the sample's neighbours are found.

        Return an error message if that is more than a GPU allows, and an empty one otherwise.
        """
        sample_QD = unit_float32(wanted.sample_QD)
        nearest = exact.candidates(sample_QD, wanted.num_nearest + 1)
        count = min(wanted.num_nearest + 1, nearest.places_QC.shape[1])
        best = nearest.similarity_QC.topk(count)
        nearest_QC = nearest.places_QC.gather(1, best.indices)
        is_itself_QC = best.values > 1 - UNIT  # and exact copies, which any breadth finds
        on_gpu = self._device.type == "cuda"
        widest = min(self._widest, MOST_ON_GPU) if on_gpu else self._widest
        breadth = 1 if wanted.share < 1 else widest
        while self._set_breadth(breadth) and breadth < self._widest:
            found_QC = self.candidates(sample_QD, count).places_QC
            is_found_QC = (nearest_QC[:, :, None] == found_QC[:, None]).any(dim=2)
            share = float(is_found_QC[~is_itself_QC].double().mean())
            if share >= wanted.share:
                break
            if breadth == widest:
                return (
                    f"faiss looks at no more than {widest:,} of {self._widest:,} cells on a GPU, "
                    f"which finds {share:.1%} of a sample's nearest rows and not {wanted.share:.1%}"
                )
            breadth = min(2 * breadth, widest)
        return ""

    def _set_breadth(self, breadth: int) -> bool:
        """Set how much a query looks at; return False for an index that has nothing to set."""
        faiss = load_faiss()
        space = faiss.ParameterSpace() if self._resources is None else faiss.GpuParameterSpace()
        try:
            space.set_index_parameter(self._index, self._breadth, breadth)
        except RuntimeError:
            return False
        return True


def unit_float32(features_XD: Tensor) -> Tensor:
    """Return rows as float32 of unit norm: themselves where they are so already."""
    if _is_unit_float32(features_XD):
        return features_XD
    wide = torch.promote_types(features_XD.dtype, torch.float32)
    return functional.normalize(features_XD.to(wide), dim=1).float()


def _is_unit_float32(features_XD: Tensor) -> bool:
    """Return whether rows are contiguous float32 of unit norm, which faiss reads in place."""
    if features_XD.dtype != torch.float32:
        return False
    norm_X = torch.linalg.vector_norm(features_XD, dim=1)
    return bool(((norm_X - 1).abs() <= UNIT).all()) and features_XD.is_contiguous()


def evenly(features_SD: Tensor, count: int) -> Tensor:
    """Return at most `count` rows, spread over the shard."""
    count = min(count, len(features_SD))
    places_X = torch.linspace(0, len(features_SD) - 1, count, dtype=torch.float64)
    return features_SD[places_X.long().to(features_SD.device)]


def _fill(index: Any, search: str, num_rows: int) -> None:
    """Raise ValueError if an index cannot be filled.

    Some kinds can be created and not be filled: they lack ids, or centroids for so few rows.
    """
    random = torch.Generator().manual_seed(0)
    rows_XD = functional.normalize(torch.randn(num_rows, index.d, generator=random), dim=1)
    try:
        index.train(rows_XD)
        index.add(rows_XD)
    except RuntimeError as error:
        raise ValueError(
            f"discovery.search={search} cannot hold {num_rows:,} rows: {str(error).split(': ')[-1]}"
        ) from None


def _create(dim: int, search: str) -> Any:
    """Return an empty index by inner product; raise ValueError for what is no factory string."""
    faiss = load_faiss()
    try:
        return faiss.index_factory(dim, search, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise ValueError(
            f"discovery.search={search!r} is no faiss index by inner product for {dim} dimensions; "
            f"right are {', '.join(EXACT)} and such as IVF1024,Flat, IVF1024,SQfp16 or HNSW32"
        ) from None


@cache
def load_faiss() -> Any:
    """Return faiss, set to multiply matrices; loading it would delay the start of every rank."""
    import faiss
    import faiss.contrib.torch_utils  # faiss takes and gives tensors, on a GPU without a copy

    # faiss 1.15 multiplies matrices only where queries times dimensions exceed 128,000; below, it
    # loops over pairs, which takes five times as long.
    faiss.cvar.distance_compute_blas_threshold = 1
    faiss.cvar.distance_compute_blas_database_bs = ROWS_AT_ONCE
    return faiss


def _limit_threads() -> None:
    """Give faiss's own OpenMP as many threads as torch has."""
    load_faiss().omp_set_num_threads(torch.get_num_threads())


def _gpu_resources(device: torch.device) -> Any:
    """Return faiss's streams, handles and scratch memory on a GPU; None on a CPU.

    faiss allocates beside torch, whose cache may hold all that is free.
    """
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    return _make_gpu_resources(device.index)


@cache
def _make_gpu_resources(_: int) -> Any:
    """Make the resources for a GPU, once a process.

    What is searched lies on the GPU, so no memory is pinned for copies; faiss's default is 256 MB.
    """
    resources = load_faiss().StandardGpuResources()
    resources.setTempMemory(GPU_SCRATCH_BYTES)
    resources.setPinnedMemory(0)
    return resources
