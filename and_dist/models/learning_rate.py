"""Compute the learning rate of a step from its place alone, so that any step can be resumed at.

torch's own schedulers keep a state, and their chained forms collect rounding errors. A test
compares these with them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from and_dist.config.optim_schema import OptimConfig, TrainingOptimConfig

REFERENCE_BATCH = 256
"""The batch size that optim.lr_per_256 is the learning rate of."""


class Place(NamedTuple):
    """Tell where a step is in the span over which the learning rate rises and falls."""

    step: int
    """Steps of the span before this one."""
    num_steps: int
    """All steps of the span."""
    steps_per_epoch: int


def learning_rate(config: OptimConfig, epoch: int) -> float:
    """Return the rate of an epoch by the milestones; epochs count from 0."""
    return _after_milestones(config, config.lr, epoch)


def learning_rate_at(config: TrainingOptimConfig, place: Place) -> float:
    """Return the rate of a step."""
    warm = config.warmup_epochs * place.steps_per_epoch
    if config.schedule == "cosine":
        share = (place.step - warm) / max(1.0, place.num_steps - warm)
        rate = peak_rate(config) * (1 + math.cos(math.pi * max(0.0, share))) / 2
    else:
        epoch = place.step // place.steps_per_epoch
        rate = _after_milestones(config, peak_rate(config), epoch)
    return rate * (place.step + 1) / warm if place.step + 1 < warm else rate


def peak_rate(config: TrainingOptimConfig) -> float:
    """Return the rate before it falls: as given, or in proportion to the batch."""
    if config.lr_per_256 is None:
        return config.lr
    return config.lr_per_256 * config.batch_size / REFERENCE_BATCH


def _after_milestones(config: OptimConfig, rate: float, epoch: int) -> float:
    """Return a rate after its falls up to an epoch."""
    falls = sum(epoch >= milestone for milestone in config.milestones)
    return rate * config.decay**falls
