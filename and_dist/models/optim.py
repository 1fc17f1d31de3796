"""Build SGD and its learning rate schedule, which restarts every round."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from and_dist.config.optim_schema import OptimConfig


class EagerSGD(torch.optim.SGD):
    """Is torch's SGD, whose methods are taken out of what keeps torch.compile away from them.

    That would load torch.compile, for which every rank would wait nearly a second. Only an encoder
    is ever compiled here, so there is nothing to keep away.
    """

    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


def build_optimiser(modules: Iterable[nn.Module], config: OptimConfig) -> torch.optim.SGD:
    """Return SGD over every parameter of some modules, with momentum buffers of zeros.

    A missing buffer would act as zeros in the first step. With buffers from the start, a checkpoint
    has the same tensors whenever it is taken.
    """
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimiser = EagerSGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov and config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=config.fused,
    )
    if config.momentum > 0:
        for parameter in parameters:
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser


def parameters_of(optimiser: torch.optim.SGD) -> list[Tensor]:
    """Return all parameters of an optimiser, in its order."""
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def learning_rate(config: OptimConfig, epoch: int) -> float:
    """Return the learning rate of an epoch of a round; epochs count from 0."""
    falls = sum(epoch >= milestone for milestone in config.milestones)
    return config.lr * config.decay**falls


def set_learning_rate(optimiser: torch.optim.SGD, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimiser.param_groups:
        group["lr"] = rate
