"""Hold everything a run resumes from: in memory, as tensors by name, and as plain JSON.

Random states are not part of it: order, augmentation and dropout are functions of the step.
S rows of this shard, D feature, A anchors.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from and_dist.checkpoint.names import Tensors, checkpoint_name
from and_dist.checkpoint.storage import load_tensors
from and_dist.config.comparison import AUTO
from and_dist.config.optim_schema import TrainingOptimConfig
from and_dist.config.schema import Config
from and_dist.distributed.world import World
from and_dist.method.memory_bank import MemoryBank, draw_uniform_rows, shard_range
from and_dist.method.neighbour_table import Neighbourhoods
from and_dist.method.partition_gpu import ATTENTION
from and_dist.models.encoders import Encoder
from and_dist.models.optim import build_training_optimiser
from and_dist.objectives.base import Objective
from and_dist.training.choices import products_of
from and_dist.training.meters import LossMeter


@dataclass(frozen=True)
class Progress:
    """Tells what is finished: `epochs` epochs and `step` steps of round `round_index`."""

    round_index: int = 0
    epochs: int = 0
    step: int = 0
    is_begun: bool = False
    """True once the round has its neighbourhoods; round 0, its baselines and first bank."""
    seconds: float = 0.0
    """Seconds spent on this round."""

    @property
    def place(self) -> tuple[int, int, int]:
        """Return (round, epochs, steps), which grows as training goes on."""
        return self.round_index, self.epochs, self.step

    @property
    def checkpoint_name(self) -> str:
        """Return the name of the checkpoint of this moment."""
        return checkpoint_name(*self.place)


NAMES = {"momentum_buffer": "momentum"}
"""Our names of what optimisers keep, where they are not torch's."""


@dataclass
class RunState:
    """Hold all that one rank trains; `bank` is its shard, the rest is the same on all ranks."""

    encoder: Encoder
    optimiser: Optimizer
    bank: MemoryBank
    objective: Objective
    losses: LossMeter
    """Losses of the epoch under way."""
    progress: Progress = Progress()
    skipped: list[list[int]] = field(default_factory=list)
    """[epoch over all rounds, step] of batches whose loss or gradient was not finite."""

    @property
    def neighbourhoods(self) -> Neighbourhoods:
        """Return the table that the round trains with."""
        return self.objective.neighbourhoods

    def tensors(self) -> Tensors:
        """Return all tensors but the bank, by their names in a checkpoint."""
        modules: dict[str, nn.Module] = {
            "encoder": self.encoder,
            "peer.head": self.objective.head,
        }
        weights = {
            f"{at}.{name}": tensor
            for at, module in modules.items()
            for name, tensor in module.state_dict().items()
        }
        kept = {
            f"{NAMES.get(what, what)}.{at}.{name}": tensor
            for at, module in modules.items()
            for name, parameter in module.named_parameters()
            for what, tensor in self.optimiser.state[parameter].items()
        }
        others = {f"peer.{name}": t for name, t in self.objective.tensors().items()}
        table = self.neighbourhoods
        return {
            **weights,
            **kept,
            **others,
            "neighbours": table.neighbours_NK,
            "entropy": table.entropy_N,
            "anchors": table.anchors_A,
        }

    def plain(self) -> dict[str, Any]:
        """Return what a checkpoint holds as JSON."""
        return {
            "progress": asdict(self.progress),
            "num_anchors": len(self.neighbourhoods.anchors_A),
            "losses": self.losses.plain(),
            "skipped": self.skipped,
        }

    def load(self, checkpoint: Path, plain: dict[str, Any], world: World) -> None:
        """Read what tensors() and plain() have given."""
        anchors_A = torch.empty(plain["num_anchors"], dtype=torch.int64, device=world.device)
        self.objective.neighbourhoods = replace(self.neighbourhoods, anchors_A=anchors_A)
        load_tensors(checkpoint, self.tensors(), world, self.bank)
        self.bank.round_again()
        self.losses.restore(plain["losses"])
        self.progress = Progress(**plain["progress"])
        self.skipped = [list(step) for step in plain["skipped"]]


def build_bank(config: Config, num_rows: int, world: World) -> MemoryBank:
    """Return this rank's shard of the first bank."""
    start, stop = shard_range(num_rows, world.rank, world.size)
    rows_SD = draw_uniform_rows(start, stop, config.encoder.feature_dim, config.seed)
    bank = MemoryBank(
        rows_SD.to(world.device, getattr(torch, config.bank.dtype)),
        start,
        num_rows,
        config.bank.update_rate,
        config.bank.renormalise,
        products_of(config),
    )
    bank.form = ATTENTION if config.bank.form == AUTO else config.bank.form
    return bank


def build_state(
    optim: TrainingOptimConfig, encoder: Encoder, bank: MemoryBank, objective: Objective
) -> RunState:
    """Return the state before the first step."""
    optimiser = build_training_optimiser(encoder, objective.head, optim)
    losses = LossMeter(bank.features_SD.device)
    return RunState(encoder, optimiser, bank, objective, losses)
