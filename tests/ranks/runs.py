"""Whole runs of configs/debug.yaml on the ranks of the pool, and what they leave behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from and_dist.config import Config, load_config
from and_dist.data.datasets import load_train_and_test
from and_dist.display import Display
from and_dist.run_folder import open_run_folder
from and_dist.trainer import Trainer
from and_dist.world import World

TIMINGS = ("seconds", "images_per_s")


def debug_config(root: Path, *overrides: str) -> Config:
    return load_config(["configs/debug.yaml"], [f"run.root={root}", *overrides])


def train(world: World, config: Config) -> None:
    if world.is_coordinator:
        open_run_folder(config, world)
    images, test_images = load_train_and_test(config.data)
    Trainer(config, world, images, test_images, Display(is_shown=False)).train()


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
        open_run_folder(config, world)
    images, test_images = load_train_and_test(config.data)
    trainer = InterruptedTrainer(config, world, images, test_images, Display(is_shown=False))
    trainer.die_at = epochs
    try:
        trainer.train()
    except InterruptedError:
        return
    raise AssertionError("the run was not interrupted")


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl, the timings left out."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in TIMINGS} for record in records]


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


def assert_equal_to_the_bit(ours: Path, theirs: Path) -> None:
    assert metrics_of(ours) == metrics_of(theirs)
    our_tensors, their_tensors = checkpoint_of(ours), checkpoint_of(theirs)
    assert our_tensors.keys() == their_tensors.keys()
    for name, tensor in our_tensors.items():
        assert torch.equal(tensor.nan_to_num(7.0), their_tensors[name].nan_to_num(7.0)), name
