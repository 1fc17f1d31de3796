"""Whiten sharded features by PCA and cluster them by k-means, with all ranks.

Directions are clustered (spherical k-means): rows and centres are unit vectors. faiss finds each
row's nearest centre. S rows of this shard, D feature, E components kept, C clusters, X any rows.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from and_dist.distributed.collectives import (
    broadcast_from_coordinator,
    raise_on_all_ranks,
    reduce_sum,
)
from and_dist.distributed.world import World
from and_dist.method.faiss_search import ExactSearch
from and_dist.utils.counter_random import draw_bits
from and_dist.utils.progress import Advance, silently

FLOOR = 1e-6
"""The share of the largest variance below which a direction is divided as if it had that much, so
that whitening does not blow up noise."""
NUDGE = 1 / 1024
"""The relative distance by which a split centre's halves are pushed apart, as in faiss."""
SEARCH_BYTES = 100_000_000
ROWS_AT_ONCE = 65536


class Shard(NamedTuple):
    """This rank's rows of all features, and where they begin."""

    features_SE: Tensor
    start: int
    num_rows: int
    """Rows of all ranks."""


@dataclass(frozen=True)
class KMeansOptions:
    """Say how many clusters are sought, for how long, and from which random centres."""

    num_clusters: int
    iterations: int
    key: np.uint64
    """Key of the random numbers that choose the first centres (utils/counter_random.py)."""


def whiten(features_SD: Tensor, most_components: int, world: World) -> Tensor:
    """Return unit rows [S, E] of the directions of largest variance, each scaled to variance 1."""
    dim = features_SD.shape[1]
    count_and_sum = torch.zeros(1 + dim, dtype=torch.float64, device=features_SD.device)
    count_and_sum[0] = len(features_SD)
    count_and_sum[1:] = features_SD.sum(dim=0, dtype=torch.float64)
    count, sum_D = reduce_sum(world, count_and_sum).split([1, dim])
    covariance_DD = torch.zeros(dim, dim, dtype=torch.float64, device=features_SD.device)
    for rows_XD in features_SD.split(ROWS_AT_ONCE):
        centred_XD = rows_XD.double() - sum_D / count
        covariance_DD += centred_XD.T @ centred_XD
    variance_D, axes_DD = torch.linalg.eigh(reduce_sum(world, covariance_DD).cpu())  # ascending
    axes_DE = axes_DD.flip(1)[:, :most_components]
    variance_E = variance_D.flip(0)[:most_components] / count.cpu()
    scaled_DE = axes_DE / variance_E.clamp(min=FLOOR * variance_E[0] + 1e-30).sqrt()
    scaled_DE = broadcast_from_coordinator(world, scaled_DE.contiguous().to(features_SD.device))
    whitened = [
        functional.normalize(((rows_XD.double() - sum_D / count) @ scaled_DE).float(), dim=1)
        for rows_XD in features_SD.split(ROWS_AT_ONCE)
    ]
    return torch.cat(whitened)


def cluster(
    shard: Shard, options: KMeansOptions, world: World, advance: Advance = silently
) -> Tensor:
    """Return [S] the cluster of each row, after some rounds of Lloyd's algorithm over all ranks."""
    features_SE = shard.features_SE
    centres_CE = _first_centres(shard, options, world)
    for _ in range(options.iterations):
        clusters_S = _nearest_centres(features_SE, centres_CE, world)
        sums_CE = torch.zeros_like(centres_CE, dtype=torch.float64)
        parts = zip(clusters_S.split(ROWS_AT_ONCE), features_SE.split(ROWS_AT_ONCE), strict=True)
        for clusters_X, rows_XE in parts:
            sums_CE.index_add_(0, clusters_X, rows_XE.double())
        sizes_C = clusters_S.bincount(minlength=options.num_clusters).double()
        sums = reduce_sum(world, torch.cat([sums_CE, sizes_C[:, None]], dim=1))
        centres_CE = functional.normalize(sums[:, :-1], dim=1)
        centres_CE = split_largest(centres_CE, sums[:, -1].long()).float()
        advance(1 / options.iterations)
    return _nearest_centres(features_SE, centres_CE, world)


def split_largest(centres_CE: Tensor, sizes_C: Tensor) -> Tensor:
    """Give every empty cluster half of the largest one, and push both centres a little apart."""
    centres_CE, sizes = centres_CE.clone(), sizes_C.tolist()
    sign_E = torch.ones(centres_CE.shape[1], dtype=centres_CE.dtype, device=centres_CE.device)
    sign_E[1::2] = -1
    largest_first = [(-size, at) for at, size in enumerate(sizes) if size]
    heapq.heapify(largest_first)
    for empty in [at for at, size in enumerate(sizes) if size == 0]:
        negative, largest = largest_first[0]
        centre_E = centres_CE[largest].clone()
        centres_CE[empty] = centre_E * (1 + NUDGE * sign_E)
        centres_CE[largest] = centre_E * (1 - NUDGE * sign_E)
        half = -negative // 2
        heapq.heapreplace(largest_first, (negative + half, largest))
        heapq.heappush(largest_first, (-half, empty))
    return functional.normalize(centres_CE, dim=1)


def _first_centres(shard: Shard, options: KMeansOptions, world: World) -> Tensor:
    """Return the rows [C, E] whose random numbers are smallest, from the ranks that have them."""
    features_SE, count = shard.features_SE, options.num_clusters
    numbers_N = draw_bits(options.key, np.arange(shard.num_rows), 1)[:, 0]
    rows_C = torch.from_numpy(np.argsort(numbers_N, kind="stable")[:count])
    local_C = rows_C.to(features_SE.device) - shard.start
    is_here_C = (local_C >= 0) & (local_C < len(features_SE))
    centres_CE = features_SE.new_zeros(count, features_SE.shape[1])
    centres_CE[is_here_C] = features_SE[local_C[is_here_C]]
    return reduce_sum(world, centres_CE)


def _nearest_centres(features_SE: Tensor, centres_CE: Tensor, world: World) -> Tensor:
    """Return [S] the number of each row's nearest centre."""
    with raise_on_all_ranks(world, "k-means"):
        search = ExactSearch(centres_CE, SEARCH_BYTES)
        none = torch.zeros(0, dtype=torch.int64, device=features_SE.device)
        found = [search.candidates(rows, 1) for rows in features_SE.split(ROWS_AT_ONCE)]
        best = [similarity.argmax(dim=1, keepdim=True) for similarity, _, _ in found]
        nearest = [
            places.gather(1, at)[:, 0] for (_, places, _), at in zip(found, best, strict=True)
        ]
    return torch.cat([none, *nearest])
