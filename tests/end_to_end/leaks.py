"""python leaks.py ROOT EPOCHS RESTARTS: memory, files and threads of one process, as JSON.

What there was after every epoch of one run, of twenty steps each and two rounds of so many, then
after every restart of another.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from torch import Tensor

from and_dist.config.load import load_config
from and_dist.config.schema import Config
from and_dist.data.datasets import load_train_and_test
from and_dist.data.loader import Batch
from and_dist.distributed.watchdog import Stopped, Watchdog
from and_dist.distributed.world import World, open_world
from and_dist.runs.console import Display
from and_dist.runs.folder import open_run_folder
from and_dist.training.trainer import Trainer

Usage = dict[str, float]


def usage() -> Usage:
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    resident = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return {
        "resident_mb": resident / 1000,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "python_threads": threading.active_count(),
    }


class MeasuredTrainer(Trainer):
    """Looks at itself after every epoch, and stops itself after so many steps."""

    seen: list[Usage]
    steps_left = -1

    def train_epoch(self, round_index: int, epoch: int) -> None:
        super().train_epoch(round_index, epoch)
        self.seen.append(usage())

    def train_step(self, batch: Batch) -> Tensor:
        self.steps_left -= 1
        if self.steps_left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().train_step(batch)


def train(world: World, config: Config, steps: int = -1) -> list[Usage]:
    images, test_images = load_train_and_test(config.data)
    display = Display(is_shown=False)
    open_run_folder(config, world.size, world.device.type)
    with contextlib.suppress(Stopped), Watchdog() as watchdog:
        trainer = MeasuredTrainer(config, world, images, test_images, display, watchdog)
        trainer.seen, trainer.steps_left = [], steps
        trainer.train()
    return trainer.seen


def starts_of(config: Config) -> list[dict[str, Any]]:
    return list(json.loads((config.folder / "environment.json").read_text()))


def main(root: str, epochs: int, restarts: int) -> None:
    common = [
        f"run.root={root}",
        "data.limit=320",
        "data.limit_test=32",
        "optim.batch_size=16",
        "curriculum.rounds=1",
        "optim.milestones=[1]",
        "evaluation.baselines=false",
    ]
    debug = ["configs/debug.yaml"]
    with open_world("cpu", threads=1) as world:
        long = load_config(debug, [*common, "name=long", f"curriculum.epochs={epochs}"])
        over_steps = train(world, long)
        over_restarts = []
        many = load_config(debug, [*common, "name=restarted", "curriculum.epochs=50"])
        for _ in range(restarts):
            train(world, many, steps=25)
            over_restarts.append(usage())
        again = [start.get("steps_again") for start in starts_of(many)]
        assert again == [None] + [0] * (restarts - 1)
    print(json.dumps({"over_steps": over_steps, "over_restarts": over_restarts}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
