"""SGD and its schedule, which restarts every round."""

from __future__ import annotations

import torch
from torch import nn

from and_dist.config import OptimConfig


def build_optimiser(encoder: nn.Module, config: OptimConfig) -> torch.optim.SGD:
    """SGD over every parameter, its momentum buffers present from the start.

    A buffer of zeros is what the first step would make of none, and a checkpoint then has the same
    tensors whenever it is taken.
    """
    optimiser = torch.optim.SGD(
        encoder.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov and config.momentum > 0,
        weight_decay=config.weight_decay,
    )
    if config.momentum > 0:
        for parameter in encoder.parameters():
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser


def learning_rate(config: OptimConfig, epoch: int) -> float:
    """The rate of an epoch of a round, counted from 0."""
    falls = sum(epoch >= milestone for milestone in config.milestones)
    return config.lr * config.decay**falls


def set_learning_rate(optimiser: torch.optim.SGD, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate
