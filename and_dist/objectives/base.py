"""What makes a method. B local batch, G global batch, N all rows, S of this shard."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from and_dist.config.schema import Config
from and_dist.data.index import LabelledImages
from and_dist.distributed.world import World
from and_dist.method.loss import GlobalBatch
from and_dist.method.memory_bank import MemoryBank
from and_dist.utils.progress import Phase


@dataclass(frozen=True)
class ObjectiveContext:
    """What a peer may use of its run."""

    config: Config
    world: World
    bank: MemoryBank
    """Filled by the trainer with the features of every step, whatever the method."""
    labels_N: NDArray[np.int64] | None
    """For a peer that learns from labels."""
    features_of_shard: Callable[[], Tensor]
    """[S, D] of the encoder as it is now, by the test transform."""
    phase: Phase
    """Around what takes long before an epoch."""


class Objective(ABC):
    """A loss of the global batch, and what it needs. Every rank forms it of the same numbers."""

    learns_from_labels: ClassVar[bool] = False

    def __init__(self, context: ObjectiveContext) -> None:
        self.context = context
        self.head: nn.Module = nn.Identity()
        """Trained with the encoder, and saved."""

    @classmethod  # noqa: B027 - most take all images
    def check(cls, config: Config, images: LabelledImages) -> None:
        """ValueError for data or settings it cannot work with; before anything is written."""

    def tensors(self) -> dict[str, Tensor]:
        """What it goes on from beside the head: alike on all ranks, of one shape all along."""
        return {}

    def begin_epoch(  # noqa: B027 - most need nothing
        self, number: int, optimiser: torch.optim.SGD
    ) -> None:
        """Before the first step of an epoch, counted over all rounds."""

    @abstractmethod
    def loss(self, features_BD: Tensor, batch: GlobalBatch) -> Tensor:
        """The same number on every rank; see objective.py for how gradients travel."""


def build_classifier(dim: int, num_classes: int, seed: int, device: torch.device) -> nn.Linear:
    """Its weights follow from the seed, equal on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(dim, num_classes).to(device)
