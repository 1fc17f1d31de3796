"""Classify images by weighted kNN over sharded features: the K nearest vote exp(cosine / tau).

N all rows, S rows of this shard, M test images of this rank, Q queries of one block, K neighbours,
C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from and_dist.config.schema import EvaluationConfig
from and_dist.distributed.collectives import equal_blocks, raise_on_all_ranks, take_rows
from and_dist.distributed.world import World
from and_dist.evaluation.accuracy import rank_of_true_class
from and_dist.method.neighbour_search import Nearest, ShardSearch, search_shards
from and_dist.utils.progress import Advance, silently

QUERIES_PER_BLOCK, QUERIES_OF_ALL_RANKS = 512, 1 << 12
"""The largest numbers of queries that are searched at a time, of one rank and of all ranks."""


@dataclass(frozen=True)
class Voters:
    """Hold the rows that may vote: the features of this rank's shard and the labels of all rows."""

    features_SD: Tensor
    start: int
    """The global row of the first feature."""
    labels_N: Tensor
    """The classes of all rows; rows of label -1 do not vote."""


def knn_places(
    voters: Voters,
    queries_MD: Tensor,
    labels_M: Tensor,
    world: World,
    settings: EvaluationConfig,
    advance: Advance = silently,
) -> Tensor:
    """Return [M] the place of each query's true class by the votes of all ranks' rows, 0 the first.

    If K is larger than the number of rows, all rows vote. A class without a vote has the last
    place. All ranks have to call this together.
    """
    labels_N = voters.labels_N
    num_neighbours = min(settings.knn, len(labels_N))
    with raise_on_all_ranks(world, "the search of kNN evaluation"):
        shard = ShardSearch(voters.features_SD, voters.start, num_neighbours)
    num_classes = 1 + max(int(labels.max()) for labels in (labels_N, labels_M) if len(labels))
    places_M = torch.zeros(len(queries_MD), dtype=torch.int64)
    positions_M = torch.arange(len(queries_MD), device=queries_MD.device)
    blocks = equal_blocks(world, positions_M, QUERIES_PER_BLOCK, QUERIES_OF_ALL_RANKS)
    for positions_Q in blocks:
        queries_QD = take_rows(queries_MD, positions_Q)
        no_rows_Q = torch.full_like(positions_Q, -1)
        found = search_shards(shard, queries_QD, no_rows_Q, world)
        nearest = Nearest(*(tensor.cpu() for tensor in found))
        votes_QC = vote(nearest, labels_N, num_classes, settings.knn_temperature)
        real_Q = positions_Q.cpu()
        labels_Q = take_rows(labels_M, real_Q)
        has_vote_Q = votes_QC.gather(1, labels_Q[:, None])[:, 0] > 0
        found_Q = rank_of_true_class(votes_QC, labels_Q).where(has_vote_Q, num_classes - 1)
        places_M[real_Q[real_Q >= 0]] = found_Q[real_Q >= 0]
        advance(1 / len(blocks))
    return places_M


def vote(nearest: Nearest, labels_N: Tensor, num_classes: int, temperature: float) -> Tensor:
    """Return votes [Q, C]: sums of exp(cosine / tau), relative to the nearest row's vote."""
    # The difference to the largest cosine keeps exp from overflowing at a small temperature.
    weights_QK = ((nearest.similarity_QK - nearest.similarity_QK[:, :1]) / temperature).exp()
    labels_QK = labels_N[nearest.rows_QK.clamp(min=0)]
    weights_QK = weights_QK.where((nearest.rows_QK >= 0) & (labels_QK >= 0), 0)
    votes_QC = weights_QK.new_zeros(len(weights_QK), num_classes)
    return votes_QC.scatter_add_(1, labels_QK.clamp(min=0), weights_QK)
