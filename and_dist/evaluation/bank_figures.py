"""Judge a bank's rows while training goes on: by a linear probe, and by early signs of collapse.

All of it is exact over the shards, and changes nothing that is trained.

S rows of this shard, M test images of this rank, Q rows that are looked at, W ranks, C classes,
D feature, T rows of a tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from and_dist.distributed.collectives import gather_batch, reduce_sum
from and_dist.distributed.world import World
from and_dist.evaluation.accuracy import rank_of_true_class
from and_dist.method.memory_bank import MemoryBank
from and_dist.method.partition import log_partition
from and_dist.method.partition_merge import Partition, merge_stacked

BANK_FIGURES = ("knn_bank", "probe_bank", "mean_norm", "spread", "neighbour_entropy")
"""The figures of a bank, as Evaluator.judge_bank() returns them."""
VALUES_OF_A_TILE = 2_000_000
"""The number of features and marks of classes that are in memory at a time, in float64."""
RIDGE, LEAST_RIDGE = 1e-4, 1e-9
"""The ridge of the probe, as a share of the features' mean variance, and where there is none."""
MOST_LOOKED_AT = 256
"""The number of rows, evenly spread, whose neighbours are looked at."""


class Moments(NamedTuple):
    """Hold sums over the rows of all shards, in float64."""

    num_rows: Tensor
    sum_D: Tensor
    products_DD: Tensor
    sums_of_classes_CD: Tensor
    num_of_classes_C: Tensor


def moments_of(features_SD: Tensor, labels_S: Tensor, num_classes: int, world: World) -> Moments:
    """Return the sums over all rows that probe and signs are made of, without rows of label -1.

    All ranks call this together.
    """
    dim, device = features_SD.shape[1], features_SD.device
    sums = torch.zeros(dim + 1, dim + 1, dtype=torch.float64, device=device)
    of_classes = torch.zeros(num_classes, dim + 1, dtype=torch.float64, device=device)
    classes_C = torch.arange(num_classes, device=device)
    tile = max(1, VALUES_OF_A_TILE // (dim + num_classes))
    for start in range(0, len(features_SD), tile):
        labels_T = labels_S[start : start + tile].to(device)
        rows_TD = functional.normalize(features_SD[start : start + tile].double(), dim=1)
        # A loss that is not finite ends the run by itself, a little later.
        is_taken_T = (labels_T >= 0) & rows_TD.isfinite().all(dim=1)
        rows_TD, labels_T = rows_TD[is_taken_T], labels_T[is_taken_T]
        # A column of ones makes the sums and counts along with the products.
        rows_TD = functional.pad(rows_TD, (0, 1), value=1.0)
        sums += rows_TD.T @ rows_TD
        is_of_TC = labels_T[:, None] == classes_C
        of_classes += is_of_TC.double().T @ rows_TD
    # What follows is small, and solved on the CPU.
    sums, of_classes = reduce_sum(world, sums).cpu(), reduce_sum(world, of_classes).cpu()
    return Moments(
        sums[-1, -1], sums[-1, :-1], sums[:-1, :-1], of_classes[:, :-1], of_classes[:, -1]
    )


class Probe(NamedTuple):
    """Hold a linear classifier: scores are x @ weights + bias."""

    weights_DC: Tensor
    bias_C: Tensor

    def places(self, features_MD: Tensor, labels_M: Tensor) -> Tensor:
        """Return [M] how many classes score higher than the true one."""
        scores_MC = features_MD.double().cpu() @ self.weights_DC + self.bias_C
        return rank_of_true_class(scores_MC, labels_M)


def fit_probe(moments: Moments) -> Probe:
    """Return linear discriminant analysis: classes of one covariance around means of their own.

    It needs these sums alone. On banks of 10 and 53 classes it was above least squares, by up to 12
    points, and not below logistic regression; its ridge was chosen on the same few hundred images.
    """
    counts_C = moments.num_of_classes_C
    means_CD = moments.sums_of_classes_CD / counts_C.clamp(min=1)[:, None]
    between_DD = means_CD.T @ moments.sums_of_classes_CD
    within_DD = (moments.products_DD - between_DD) / moments.num_rows.clamp(min=1)
    ridge = RIDGE * within_DD.diagonal().mean() + LEAST_RIDGE
    eye_DD = torch.eye(len(within_DD), dtype=torch.float64)
    weights_DC = torch.linalg.solve(within_DD + ridge * eye_DD, means_CD.T)
    # A class without a row gets a bias of -inf: nothing is taken for it.
    log_shares_C = (counts_C / moments.num_rows.clamp(min=1)).log()
    return Probe(weights_DC, log_shares_C - (means_CD.T * weights_DC).sum(dim=0) / 2)


def signs_of_collapse(moments: Moments) -> dict[str, float]:
    """Return figures between 0 and 1 that tell whether all images get the same feature.

    `mean_norm` is the norm of the mean feature: near 1, all point the same way. `spread` is the
    number of directions in which features differ (the exponential of the entropy of their
    variances' shares) over D: near 0, they differ in a few alone.
    """
    count = moments.num_rows.clamp(min=1)
    mean_D = moments.sum_D / count
    covariance_DD = moments.products_DD / count - torch.outer(mean_D, mean_D)
    variances_D = torch.linalg.eigvalsh(covariance_DD).clamp(min=0)
    shares_D = variances_D / variances_D.sum().clamp(min=torch.finfo(torch.float64).tiny)
    directions = torch.special.entr(shares_D).sum().exp()
    return {
        "mean_norm": min(1.0, float(mean_D.norm())),
        "spread": min(1.0, float(directions) / len(mean_D)) if float(shares_D.sum()) else 0.0,
    }


def neighbour_entropy(bank: MemoryBank, temperature: float, world: World) -> float:
    """Return the mean entropy of the softmax over the bank (Eq. 5) of some rows, over log N.

    It is 0 where each row is like itself alone, and 1 where it is like all others. All ranks call
    this together.
    """
    rows = np.unique(np.linspace(0, bank.num_rows - 1, MOST_LOOKED_AT).astype(np.int64))
    is_here_Q, local_Q = bank.locate(torch.from_numpy(rows))
    queries_QD = torch.zeros(len(rows), bank.features_SD.shape[1], device=bank.features_SD.device)
    queries_QD[is_here_Q] = bank.features_SD[local_Q[is_here_Q]].float()
    queries_QD = reduce_sum(world, queries_QD)
    mine = log_partition(queries_QD, bank.multiplied_SD, temperature, bank.products)
    log_z_WQ, mean_WQD = gather_batch(world, [mine.log_z[None], mine.mean[None]])
    whole = merge_stacked(Partition(log_z_WQ, mean_WQD))
    similarity_Q = (queries_QD * whole.mean).sum(dim=1) / temperature
    entropy = float((whole.log_z - similarity_Q).mean())
    return min(1.0, max(0.0, entropy / float(np.log(max(2, bank.num_rows)))))


MEAN_NORM, DIRECTIONS = 0.95, 1.5
"""The norm of the mean above which, and the number of directions below which, features collapse."""


def describe_collapse(figures: Mapping[str, float | None], dim: int) -> str:
    """Return a warning that says what to try, or nothing where no sign is alarming."""
    mean_norm, spread = figures.get("mean_norm"), figures.get("spread")
    if mean_norm is None or spread is None:
        return ""
    directions = spread * dim
    if mean_norm < MEAN_NORM and directions > DIRECTIONS:
        return ""
    return (
        f"the features collapse: their mean has a norm of {mean_norm:.2f}, of 1 at most, and they "
        f"differ in {directions:.1f} of {dim} directions; try a lower optim.lr, a lower "
        "objective.temperature, or images that differ more (data.crop_area, data.jitter)"
    )
