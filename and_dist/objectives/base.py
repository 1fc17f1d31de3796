"""Define what a run can minimise: one interface for the paper's method and those beside it.

An objective is a module of this package with a class, and a row in config.schema.OBJECTIVES.
B local batch, G global batch, N all rows, S rows of this shard, D feature.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from and_dist.config.schema import OBJECTIVES, Config
from and_dist.data.index import LabelledImages
from and_dist.distributed.world import World
from and_dist.method.loss import GlobalBatch
from and_dist.method.memory_bank import MemoryBank
from and_dist.method.neighbour_table import all_instances
from and_dist.utils.progress import Phase


@dataclass(frozen=True)
class ObjectiveContext:
    """Hold what an objective may use of its run."""

    config: Config
    world: World
    bank: MemoryBank
    """The bank, which the trainer updates with the features of every step, whatever the method."""
    labels_N: NDArray[np.int64] | None
    """Labels of the training images, for an objective that learns from labels."""
    features_of_shard: Callable[[], Tensor]
    """Returns [S, D] of the encoder as it is now, by the test transform."""
    phase: Phase
    """Shows the progress of what takes long between epochs, and lets the run be stopped in it."""


class Objective(ABC):
    """Computes a loss of the global batch, on every rank of the same numbers."""

    learns_from_labels: ClassVar[bool] = False
    sums_over_images: ClassVar[bool] = True
    """True if the loss of an image follows from it and the bank, whatever else is in its batch."""

    def __init__(self, context: ObjectiveContext) -> None:
        """Build all that a checkpoint holds, in the shapes it will have."""
        self.context = context
        self.head: nn.Module = nn.Identity()
        """Trained with the encoder, and saved."""
        bank, count = context.bank, context.config.curriculum.neighbours
        self.neighbourhoods = all_instances(bank.num_rows, count, context.world.device)
        """The neighbours of each row, which travel with every batch."""

    @classmethod  # noqa: B027 - most objectives take any data
    def check(cls, config: Config, images: LabelledImages) -> None:
        """Raise ValueError for data or settings it cannot work with, before anything is written."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what it resumes from beside the head: the same on all ranks, of fixed shapes."""
        return {}

    def begin_round(self, round_index: int) -> None:  # noqa: B027 - most objectives know no rounds
        """Prepare for a round after the first, with all ranks."""

    def begin_epoch(  # noqa: B027 - most objectives need no preparation
        self, number: int, optimiser: Optimizer
    ) -> None:
        """Prepare for an epoch, which is counted over all rounds, with all ranks."""

    @abstractmethod
    def loss(self, features_BD: Tensor, batch: GlobalBatch) -> Tensor:
        """Return the loss, the same number on every rank; method/loss.py says how gradients go."""


def build_objective(context: ObjectiveContext) -> Objective:
    """Return what the config's method minimises."""
    return _class_of(context.config.method)(context)


def check_objective(config: Config, images: LabelledImages) -> None:
    """Raise ValueError for data or settings that the config's method cannot be trained with."""
    kind = _class_of(config.method)
    if config.optim.accumulate > 1 and not kind.sums_over_images:
        raise ValueError(
            f"optim.accumulate = {config.optim.accumulate}: method={config.method} looks at all "
            "images of a batch at once, so its parts would not sum up to the whole batch"
        )
    kind.check(config, images)


def learns_from_labels(method: str) -> bool:
    """Return whether a method is given the labels of the training images."""
    return _class_of(method).learns_from_labels


def build_classifier(dim: int, num_classes: int, seed: int, device: torch.device) -> nn.Linear:
    """Return a linear classifier whose weights follow from the seed, equal on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(dim, num_classes).to(device)


def _class_of(method: str) -> type[Objective]:
    """Return a method's class; its module is imported only here, when it is needed."""
    module, name = OBJECTIVES[method].split(":")
    found: type[Objective] = getattr(import_module(f"and_dist.objectives.{module}"), name)
    return found
