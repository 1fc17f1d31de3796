"""Train configs/debug.yaml on a CPU and on the pretend GPU."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from torch import Tensor

from and_dist.config.schema import Config
from and_dist.data.loader import Batch
from and_dist.distributed.watchdog import Watchdog
from and_dist.training.session import run_training
from and_dist.training.trainer import Trainer
from tests.pretend.device import pretend_gpu
from tests.ranks.runs import debug_config

STEPS_PER_EPOCH = 5
SHORT = ("curriculum.rounds=1", "curriculum.epochs=1", "evaluation.baselines=false")
"""Two rounds of one epoch: 10 steps, one discovery, two evaluations."""


def config_for(device: str, root: Path, *overrides: str) -> Config:
    """Return a debug run named after its device, on one thread, which is enough for its size."""
    return debug_config(root, f"name={device}", f"run.device={device}", "run.threads=1", *overrides)


def train_on(device: str, root: Path, *overrides: str) -> Path:
    """Train a run to its end, "cuda" on a pretend GPU of its own; return its folder."""
    config = config_for(device, root, *overrides)
    with pretend_gpu() if device == "cuda" else nullcontext(), Watchdog() as watchdog:
        run_training(config, watchdog, "quiet")
    return config.folder


class Waits(NamedTuple):
    """Count what the host waits for from the start of a step to the start of the next.

    That includes reading the next batch, adding up losses and agreeing on requests.
    """

    num_steps: int
    within_epochs: Counter[str]
    """Waits of steps that do not log."""
    between_epochs: Counter[str]


def waits_of_steps(root: Path, *overrides: str, log_every: int = STEPS_PER_EPOCH) -> Waits:
    """Train a run that logs so often, at the end of each epoch at least, and note its waits."""
    config = config_for("cuda", root, *overrides, f"run.log_every={log_every}")
    before: list[Counter[str]] = []
    train_step = Trainer.train_step
    with pretend_gpu() as gpu, Watchdog() as watchdog:

        def noted_step(self: Trainer, batch: Batch) -> Tensor:
            before.append(gpu.host_waits())
            return train_step(self, batch)

        with patch.object(Trainer, "train_step", noted_step):
            run_training(config, watchdog, "quiet")
    within: Counter[str] = Counter()
    between: Counter[str] = Counter()
    for step, (earlier, later) in enumerate(pairwise(before), 1):
        (between if step % STEPS_PER_EPOCH == 0 else within).update(later - earlier)
    return Waits(len(before), within, between)
