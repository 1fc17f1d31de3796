"""k-means over shards, whitening, and clusters that come out empty."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from and_dist.distributed.world import World
from and_dist.method.memory_bank import shard_range
from and_dist.objectives.kmeans import KMeansOptions, Shard, cluster, split_largest, whiten
from and_dist.utils.counter_random import derive_key, draw_bits
from benchmarks.common.rank_pool import SIZES, RankPool
from tests import reference


def clusters_of(world: World, rows_ND: Tensor, clusters: int, components: int) -> Tensor:
    start, stop = shard_range(len(rows_ND), world.rank, world.size)
    rows_SE = whiten(rows_ND[start:stop], components, world)
    key = derive_key(1, "test")
    shard = Shard(rows_SE, start, len(rows_ND))
    return cluster(shard, KMeansOptions(clusters, 5, key), world)


@pytest.mark.parametrize("size", SIZES)
def test_kmeans_over_shards_equals_loops(ranks: RankPool, size: int) -> None:
    random = torch.Generator().manual_seed(2)
    rows_ND = torch.randn(103, 7, generator=random) * torch.arange(1, 8)
    ours_N = torch.cat(ranks.run(size, clusters_of, rows_ND, 6, 5))
    rows_NE = reference.whitened(rows_ND.double(), 5)
    first = np.argsort(draw_bits(derive_key(1, "test"), np.arange(103), 1)[:, 0])[:6]
    assert ours_N.tolist() == reference.lloyd(rows_NE, rows_NE[first].clone(), 5)


def whiten_part(world: World, rows_ND: Tensor, components: int) -> Tensor:
    start, stop = shard_range(len(rows_ND), world.rank, world.size)
    return whiten(rows_ND[start:stop], components, world)


def test_whitening_equals_an_svd(ranks: RankPool) -> None:
    random = torch.Generator().manual_seed(2)
    rows_ND = torch.randn(53, 7, generator=random) @ torch.randn(7, 7, generator=random)
    ours_NE = torch.cat(ranks.run(3, whiten_part, rows_ND, 4))
    theirs_NE = reference.whitened(rows_ND.double(), 4)
    torch.testing.assert_close(  # cosines do not depend on the axes' signs
        (ours_NE @ ours_NE.T).double(), theirs_NE @ theirs_NE.T, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("size", [1, 2])
def test_no_cluster_stays_empty(ranks: RankPool, size: int) -> None:
    """Where four of the first centres are one image's duplicates, all of whose rows go to one."""
    rows_ND = torch.randn(105, 7, generator=torch.Generator().manual_seed(4))
    first = np.argsort(draw_bits(derive_key(1, "test"), np.arange(105), 1)[:, 0])[:12]
    rows_ND[first[:4]] = rows_ND[first[0]].clone()
    sizes_C = torch.cat(ranks.run(size, clusters_of, rows_ND, 12, 7)).bincount(minlength=12)
    assert sizes_C.min() > 0


def test_an_empty_cluster_shares_the_largest() -> None:
    centres_CE = functional.normalize(torch.eye(4)[:3] + 0.1, dim=1)
    split_CE = split_largest(centres_CE, torch.tensor([5, 0, 9]))
    torch.testing.assert_close(split_CE[0], centres_CE[0])
    assert 0 < 1 - (split_CE[1] @ split_CE[2]).item() < 1e-4
    assert ((split_CE[1] + split_CE[2]) / 2 - centres_CE[2]).abs().max() < 1e-5
