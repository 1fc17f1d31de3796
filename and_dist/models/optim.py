"""Build the optimiser of a run, or of linear classifiers, with its state from the start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from and_dist.config.optim_schema import OptimConfig, TrainingOptimConfig
from and_dist.models.eager_optimisers import EagerAdamW, EagerSGD
from and_dist.models.encoders import Encoder, stage_of_parameters
from and_dist.models.lars import ADAPTED, Lars

FACTOR = "factor"
"""The key of a group of parameters that holds what multiplies the learning rate for it."""
ADAMW_STATE = ("exp_avg", "exp_avg_sq")
"""The tensors that torch's AdamW keeps of each parameter, beside the number of its steps."""


def build_optimiser(modules: Iterable[nn.Module], config: OptimConfig) -> EagerSGD:
    """Return SGD over every parameter of some modules, with momentum buffers of zeros."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return _sgd(EagerSGD, [{"params": parameters, FACTOR: 1.0}], config)


def build_training_optimiser(
    encoder: Encoder, head: nn.Module, config: TrainingOptimConfig
) -> Optimizer:
    """Return the optimiser that a config names, over an encoder and an objective's head."""
    groups = _groups(encoder, head, config)
    if config.name == "adamw":
        return _adamw(groups, config)
    return _sgd(Lars if config.name == "lars" else EagerSGD, groups, config)


def _groups(encoder: Encoder, head: nn.Module, config: TrainingOptimConfig) -> list[dict[str, Any]]:
    """Return all parameters, grouped by learning rate and by what is done to them."""
    stage_of = stage_of_parameters(encoder) if config.layer_decay < 1 else {}
    last = max(stage_of.values(), default=0)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    is_split = config.name == "lars" or config.weight_decay_of == "matrices"
    for name, parameter in [*encoder.named_parameters(), *head.named_parameters(prefix="peer")]:
        is_matrix = parameter.ndim > 1
        factor = config.layer_decay ** (last - stage_of.get(name, last))
        group = groups.setdefault(
            (factor, is_matrix or not is_split), {"params": [], FACTOR: factor}
        )
        group["params"].append(parameter)
        decay = config.weight_decay if is_matrix or config.weight_decay_of == "all" else 0.0
        is_adapted = config.name == "lars" and is_matrix
        group["weight_decay"] = 0.0 if is_adapted else decay
        if config.name == "lars":
            group |= {ADAPTED: config.trust if is_adapted else 0.0, "decay": decay}
    return list(groups.values())


def _sgd(kind: type[EagerSGD], groups: list[dict[str, Any]], config: OptimConfig) -> EagerSGD:
    """Return SGD, or what is built on it.

    A missing momentum buffer would act as zeros in the first step. With buffers from the start, a
    checkpoint has the same tensors whenever it is taken.
    """
    optimiser = kind(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov and config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=config.fused,
    )
    if config.momentum > 0:
        for parameter in parameters_of(optimiser):
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser


def _adamw(groups: list[dict[str, Any]], config: TrainingOptimConfig) -> EagerAdamW:
    """Return AdamW, whose step counts lie on the device, so that no step waits for it."""
    is_cuda = groups[0]["params"][0].is_cuda
    optimiser = EagerAdamW(
        groups,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=config.fused,
        capturable=is_cuda and not config.fused,
    )
    for parameter in parameters_of(optimiser):
        state = optimiser.state[parameter]
        state["step"] = torch.zeros((), device=parameter.device)
        state |= {name: torch.zeros_like(parameter) for name in ADAMW_STATE}
    return optimiser


def parameters_of(optimiser: Optimizer) -> list[Tensor]:
    """Return all parameters of an optimiser, in its order."""
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def set_learning_rate(optimiser: Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters, each times the factor of its group."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group[FACTOR]


def forget(optimiser: Optimizer, parameters: Iterable[Tensor]) -> None:
    """Set what an optimiser keeps of some parameters to what it was before the first step."""
    for parameter in parameters:
        for kept in optimiser.state[parameter].values():
            kept.zero_()


def clip_gradients(gradients: list[Tensor], norms: Sequence[Tensor], largest: float) -> None:
    """Scale gradients of known norms where they are, if all together are longer than `largest`.

    The device decides, so nothing waits.
    """
    total = torch.stack([*norms]).norm()
    torch._foreach_mul_(gradients, (largest / total.clamp(min=1e-30)).clamp(max=1.0))
