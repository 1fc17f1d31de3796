"""The methods the paper compares with, on the same loaders, encoders, schedule and evaluation.

Each is a Peer in a module of its own, found through config.OBJECTIVES.
"""

from __future__ import annotations

from importlib import import_module

from and_dist.config.schema import OBJECTIVES, Config
from and_dist.data.index import LabelledImages
from and_dist.objectives.base import Objective, ObjectiveContext


def check_objective(config: Config, images: LabelledImages) -> None:
    """ValueError for what the config's method cannot be trained with."""
    if config.method in OBJECTIVES:
        _objective(config.method).check(config, images)


def learns_from_labels(method: str) -> bool:
    return method in OBJECTIVES and _objective(method).learns_from_labels


def build_objective(context: ObjectiveContext) -> Objective | None:
    """What trains the encoder in place of neighbourhoods, if the config's method is such."""
    method = context.config.method
    return _objective(method)(context) if method in OBJECTIVES else None


def _objective(method: str) -> type[Objective]:
    module, name = OBJECTIVES[method].split(":")
    objective: type[Objective] = getattr(import_module(f"and_dist.objectives.{module}"), name)
    return objective
