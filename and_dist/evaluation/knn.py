"""Weighted kNN over a sharded set of features: votes exp(cosine / tau) of the K nearest rows.

S rows of this shard, M test images of this rank, Q queries of one block, K neighbours, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from and_dist.collectives import equal_blocks, failing_together, reduce_sum, take_rows
from and_dist.display import Advance, silently
from and_dist.neighbours import Nearest, ShardSearch, search_shards
from and_dist.world import World

QUERIES_PER_BLOCK = 512


def evaluate_knn(
    features_SD: Tensor,
    start: int,
    labels_N: Tensor,
    queries_MD: Tensor,
    labels_M: Tensor,
    world: World,
    num_neighbours: int,
    temperature: float,
    advance: Advance = silently,
) -> float:
    """Top-1 accuracy over all ranks' queries against all ranks' rows; labels of rows are global.

    More neighbours than rows means all rows.
    """
    num_neighbours = min(num_neighbours, len(labels_N))
    with failing_together(world, "the search of kNN evaluation"):
        shard = ShardSearch(features_SD, start, num_neighbours)
    num_classes = int(labels_N.max()) + 1
    counts = torch.zeros(2, dtype=torch.int64, device=world.device)
    positions_M = torch.arange(len(queries_MD), device=queries_MD.device)
    blocks = equal_blocks(world, positions_M, QUERIES_PER_BLOCK)
    for positions_Q in blocks:
        queries_QD = take_rows(queries_MD, positions_Q)
        no_rows_Q = torch.full_like(positions_Q, -1)
        found = search_shards(shard, queries_QD, no_rows_Q, world)
        nearest = Nearest(*(tensor.cpu() for tensor in found))
        guesses_Q = vote(nearest, labels_N, num_classes, temperature).argmax(dim=1)
        is_real_Q = positions_Q.cpu() >= 0
        is_right_Q = is_real_Q & (guesses_Q == take_rows(labels_M, positions_Q.cpu()))
        counts += torch.stack([is_right_Q.sum(), is_real_Q.sum()]).to(world.device)
        advance(1 / len(blocks))
    right, total = reduce_sum(world, counts).tolist()
    return float(right / total)


def vote(nearest: Nearest, labels_N: Tensor, num_classes: int, temperature: float) -> Tensor:
    """[Q, C] sums of exp(cosine / tau), relative to the nearest row's vote."""
    weights_QK = ((nearest.similarity_QK - nearest.similarity_QK[:, :1]) / temperature).exp()
    weights_QK = weights_QK.where(nearest.rows_QK >= 0, 0)
    votes_QC = weights_QK.new_zeros(len(weights_QK), num_classes)
    return votes_QC.scatter_add_(1, labels_N[nearest.rows_QK.clamp(min=0)], weights_QK)
