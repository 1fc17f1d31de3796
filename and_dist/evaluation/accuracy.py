"""Turn the rank of each true class into accuracies: top-1, top-5, per class, with an interval.

M test images of one rank, X test images of all ranks, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from and_dist.distributed.collectives import gather_objects, reduce_sum
from and_dist.distributed.world import World

UNREADABLE = -1
"""The place of the true class of an image that could not be read."""


def rank_of_true_class(scores_MC: Tensor, labels_M: Tensor) -> Tensor:
    """Return [M] how many classes score higher than the true one; lower classes win ties."""
    true_M1 = scores_MC.gather(1, labels_M[:, None])
    is_before_MC = torch.arange(scores_MC.shape[1], device=scores_MC.device) < labels_M[:, None]
    # A NaN compares as false, so the negation counts it as better: the image is never right.
    is_better_MC = ~(scores_MC <= true_M1)
    return (is_better_MC | ((scores_MC == true_M1) & is_before_MC)).sum(dim=1)


def top1_accuracy(places_M: Tensor, world: World) -> float:
    """Return top-1 accuracy over the readable images of all ranks; sum counts over the ranks."""
    counts = torch.tensor([int((places_M == 0).sum()), int((places_M != UNREADABLE).sum())])
    right, total = reduce_sum(world, counts.to(world.device)).tolist()
    return float(right / total)


def gather_ranks_of_true_class(
    places_M: Tensor, labels_M: Tensor, world: World
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Gather ([X] places, [X] labels) of all ranks in rank order; -1 marks unreadable images."""
    mine = np.stack([places_M.cpu().numpy(), labels_M.cpu().numpy()]).astype(np.int64)
    places_X, labels_X = np.concatenate(gather_objects(world, mine), axis=1)
    return places_X, labels_X


def score(
    places_M: Tensor, labels_M: Tensor, class_names: tuple[str, ...], world: World
) -> dict[str, Any]:
    """Return accuracies over the readable images of all ranks, equal on every rank.

    The values are plain numbers for JSON. top5 is None for five classes or fewer, and the accuracy
    of a class without an image is None.
    """
    places_X, labels_X = gather_ranks_of_true_class(places_M, labels_M, world)
    is_read_X = places_X != UNREADABLE
    places_X, labels_X = places_X[is_read_X], labels_X[is_read_X]
    right_X = places_X == 0
    figures: dict[str, Any] = {
        "top1": float(right_X.mean()),
        "interval": interval_of(int(right_X.sum()), len(right_X)),
        "top5": float((places_X < 5).mean()) if len(class_names) > 5 else None,
        "images": len(places_X),
        "unreadable": int((~is_read_X).sum()),
    }
    counts_C = np.bincount(labels_X, minlength=len(class_names))
    right_C = np.bincount(labels_X, weights=right_X, minlength=len(class_names))
    figures["per_class"] = {
        name: float(right_C[at] / counts_C[at]) if counts_C[at] else None
        for at, name in enumerate(class_names)
    }
    return figures


def interval_of(num_right: int, num_images: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of an accuracy by Wilson's formula.

    Where all images are right, or none, it says how far that may be chance.
    """
    from scipy.stats import binomtest  # loading it takes half a second

    low, high = binomtest(num_right, num_images).proportion_ci(0.95, method="wilson")
    return float(low), float(high)
