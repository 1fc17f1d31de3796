"""From the places of the true classes to figures: top-1, top-5, per class, with an interval.

M test images of one rank, T of all ranks, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from and_dist.distributed.collectives import gather_objects, reduce_sum
from and_dist.distributed.world import World

RESAMPLES = 10_000
UNREADABLE = -1


def rank_of_true_class(scores_MC: Tensor, labels_M: Tensor) -> Tensor:
    """[M] how many classes score higher than the true one; of equals the lower class is first."""
    true_M1 = scores_MC.gather(1, labels_M[:, None])
    is_before_MC = torch.arange(scores_MC.shape[1], device=scores_MC.device) < labels_M[:, None]
    # What is no number beats all, so that it is never right.
    is_better_MC = ~(scores_MC <= true_M1)
    return (is_better_MC | ((scores_MC == true_M1) & is_before_MC)).sum(dim=1)


def top1_accuracy(places_M: Tensor, world: World) -> float:
    """Top-1 accuracy over the images of all ranks that could be read."""
    counts = torch.tensor([int((places_M == 0).sum()), int((places_M != UNREADABLE).sum())])
    right, total = reduce_sum(world, counts.to(world.device)).tolist()
    return float(right / total)


def gather_ranks_of_true_class(
    places_M: Tensor, labels_M: Tensor, world: World
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """([T], [T]) of all ranks in their order; places of -1 are of images nobody could read."""
    mine = np.stack([places_M.cpu().numpy(), labels_M.cpu().numpy()]).astype(np.int64)
    places_T, labels_T = np.concatenate(gather_objects(world, mine), axis=1)
    return places_T, labels_T


def score(
    places_M: Tensor, labels_M: Tensor, class_names: tuple[str, ...], world: World
) -> dict[str, Any]:
    """Plain figures, the same on every rank; shares of the images that could be read."""
    places_T, labels_T = gather_ranks_of_true_class(places_M, labels_M, world)
    is_read_T = places_T != UNREADABLE
    places_T, labels_T = places_T[is_read_T], labels_T[is_read_T]
    right_T = places_T == 0
    figures: dict[str, Any] = {
        "top1": float(right_T.mean()),
        "interval": bootstrap(int(right_T.sum()), len(right_T)),
        "top5": float((places_T < 5).mean()) if len(class_names) > 5 else None,
        "images": len(places_T),
        "unreadable": int((~is_read_T).sum()),
    }
    counts_C = np.bincount(labels_T, minlength=len(class_names))
    right_C = np.bincount(labels_T, weights=right_T, minlength=len(class_names))
    figures["per_class"] = {
        name: float(right_C[at] / counts_C[at]) if counts_C[at] else None
        for at, name in enumerate(class_names)
    }
    return figures


def bootstrap(num_right: int, num_images: int, seed: int = 0) -> tuple[float, float]:
    """The middle 95 % of the accuracies of resampled test sets.

    Drawing T images with replacement, of which each is right with probability right / T, gives a
    binomial number of right ones: that is drawn, not the images.
    """
    random = np.random.default_rng(seed)
    drawn = random.binomial(num_images, num_right / num_images, RESAMPLES) / num_images
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
