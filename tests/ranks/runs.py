"""Whole runs of configs/debug.yaml on the ranks of the pool, and what they leave behind."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from and_dist.config.load import load_config
from and_dist.config.schema import Config
from and_dist.data.datasets import load_train_and_test
from and_dist.data.loader import Batch
from and_dist.distributed.watchdog import SIGNAL, Stopped, Watchdog
from and_dist.distributed.world import World
from and_dist.runs.console import Display
from and_dist.runs.folder import open_run_folder
from and_dist.training.session import run_training
from and_dist.training.trainer import Trainer
from and_dist.utils.progress import Advance

TIMINGS = ("time", "seconds", "images_per_s", "data_wait", "memory_mb", "line", "crc")
OF_TIME = ("checkpoint", "goodput")
"""The events that depend on when something was saved or started."""


def debug_config(root: Path, *overrides: str) -> Config:
    return load_config(["configs/debug.yaml"], [f"run.root={root}", *overrides])


def train(world: World, config: Config, watchdog: Watchdog | None = None) -> None:
    if world.is_coordinator:
        open_run_folder(config, world.size, world.device.type)
    images, test_images = load_train_and_test(config.data)
    display, watchdog = Display(is_shown=False), watchdog or Watchdog()
    Trainer(config, world, images, test_images, display, watchdog).train()


def train_here(root: Path, *overrides: str) -> Path:
    """The folder of a run of configs/debug.yaml, trained to its end in this process."""
    config = debug_config(root, *overrides)
    run_training(config, Watchdog(), "quiet")
    return config.folder


class InterruptedTrainer(Trainer):
    """Dies at the end of a chosen epoch, after its training and before its checkpoint."""

    def save(self) -> None:
        done = self.progress.round_index * self.config.curriculum.epochs + self.progress.epochs
        if done == self.die_at:
            raise InterruptedError("as if killed")
        super().save()

    die_at = 0


def train_until(world: World, config: Config, epochs: int) -> None:
    if world.is_coordinator:
        open_run_folder(config, world.size, world.device.type)
    images, test_images = load_train_and_test(config.data)
    trainer = InterruptedTrainer(
        config, world, images, test_images, Display(is_shown=False), Watchdog()
    )
    trainer.die_at = epochs
    try:
        trainer.train()
    except InterruptedError:
        return
    raise AssertionError("the run was not interrupted")


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl but those about time alone, without timings and seals."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in record.items() if k not in TIMINGS}
        for record in records
        if record["event"] not in OF_TIME
    ]


def losses_of(folder: Path) -> Tensor:
    return torch.tensor([r["loss"] for r in metrics_of(folder) if r["event"] == "step"])


def checkpoint_of(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the newest checkpoint; a sharded one in the order of its files."""
    checkpoint = folder / "checkpoints" / (folder / "checkpoints" / "latest").read_text().strip()
    pieces: dict[str, list[Tensor]] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            pieces.setdefault(name, []).append(tensor)
    return {
        name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in pieces.items()
    }


def difference(ours: Path, theirs: Path) -> str:
    """What is not equal to the bit, in a few words."""
    metrics, expected = metrics_of(ours), metrics_of(theirs)
    for mine, other in zip(metrics, expected, strict=False):
        if mine != other:
            return f"metrics: {mine} instead of {other}"
    if len(metrics) != len(expected):
        return f"{len(metrics)} lines of metrics instead of {len(expected)}"
    tensors, wanted = checkpoint_of(ours), checkpoint_of(theirs)
    if tensors.keys() != wanted.keys():
        return f"tensors {sorted(tensors.keys() ^ wanted.keys())}"
    for name, tensor in tensors.items():
        if not torch.equal(tensor.nan_to_num(7.0), wanted[name].nan_to_num(7.0)):
            return f"tensor {name}"
    return ""


def assert_equal_to_the_bit(ours: Path, theirs: Path) -> None:
    assert difference(ours, theirs) == ""


class Asked(Watchdog):
    """As if this process had been sent SIGTERM."""

    is_asked = False

    def request(self) -> int:
        return SIGNAL + signal.SIGTERM if self.is_asked else super().request()


class AskedTrainer(Trainer):
    """One rank is asked to stop at a step, or within a phase between steps."""

    watchdog: Asked
    at_step = -1
    in_phase = ""

    def train_step(self, batch: Batch) -> Tensor:
        self.watchdog.is_asked |= self.at_step == 0
        self.at_step -= 1
        return super().train_step(batch)

    @contextmanager
    def progress_phase(self, what: str) -> Iterator[Advance]:
        with super().progress_phase(what) as advance:
            shown = f"{self.display.place}: {what}"
            self.watchdog.is_asked |= self.in_phase in (what, shown)
            yield advance


def train_until_asked(world: World, config: Config, step: int, phase: str = "") -> str:
    """The last rank is asked to stop; gives the name of the newest checkpoint then."""
    if world.is_coordinator:
        open_run_folder(config, world.size, world.device.type)
    images, test_images = load_train_and_test(config.data)
    display = Display(is_shown=False)
    trainer = AskedTrainer(config, world, images, test_images, display, Asked())
    if world.rank == world.size - 1:
        trainer.at_step, trainer.in_phase = step, phase
    with pytest.raises(Stopped, match="SIGTERM"):
        trainer.train()
    latest = config.folder / "checkpoints" / "latest"
    return latest.read_text().strip() if latest.exists() else ""


class PoisonedTrainer(Trainer):
    """One batch has an image that is no number, or makes a gradient that is none."""

    poisoned = (1, 1, 2)
    """Round, epoch and step."""
    spoils = "loss"

    def train_step(self, batch: Batch) -> Tensor:
        at = self.progress
        if (at.round_index, at.epochs, at.step) != self.poisoned:
            return super().train_step(batch)
        if self.spoils == "loss":
            return super().train_step(batch._replace(images_BCHW=batch.images_BCHW * torch.nan))
        hook = self.state.encoder.head.weight.register_hook(lambda gradient: gradient * torch.inf)
        loss = super().train_step(batch)
        hook.remove()
        return loss


def train_poisoned(world: World, config: Config, spoils: str) -> None:
    if world.is_coordinator:
        open_run_folder(config, world.size, world.device.type)
    images, test_images = load_train_and_test(config.data)
    display = Display(is_shown=False)
    trainer = PoisonedTrainer(config, world, images, test_images, display, Watchdog())
    trainer.spoils = spoils
    trainer.train()
