"""Train on the ranks of a pool, with any number of rows, and measure time and memory.

benchmarks.plan and its test compare the figures with the predictions of `and-dist plan`.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from and_dist.config.load import load_config
from and_dist.config.schema import Config
from and_dist.data.index import ImageIndex, LabelledImages
from and_dist.data.shapes import draw_shapes
from and_dist.data.stores import MemoryStore
from and_dist.distributed.collectives import reduce_sum
from and_dist.distributed.ddp import seed_step
from and_dist.distributed.watchdog import Watchdog
from and_dist.distributed.world import World
from and_dist.runs.console import Display
from and_dist.runs.folder import open_run_folder
from and_dist.training.trainer import Trainer
from benchmarks.common.memory import forget_peak, give_back_memory, peak_mb

DRAWN = 512
WARM_UP = 4
"""The number of steps before timing starts: as many as the loader has batches ready."""


class Scene(NamedTuple):
    """Describe a job that is small enough for this machine."""

    encoder: str
    num_rows: int
    batch_size: int

    @property
    def name(self) -> str:
        """Return a name for tables."""
        return f"{self.encoder}, {self.num_rows // 1000:,}k rows, batch {self.batch_size}"

    def config(self, root: str, threads: int = 1) -> Config:
        """Return the config of a run that trains this job."""
        overrides = [
            f"run.root={root}",
            f"encoder.name={self.encoder}",
            "data.test=null",
            f"optim.batch_size={self.batch_size}",
            f"data.limit={self.num_rows}",
            "evaluation.baselines=false",
            f"run.threads={threads}",
        ]
        return load_config([], overrides)


def few_images(num_rows: int) -> LabelledImages:
    """Return `num_rows` rows that repeat a few drawn images, and so take next to no memory."""
    drawn = draw_shapes("train", DRAWN).index.store
    assert isinstance(drawn, MemoryStore)
    offset_N = np.resize(drawn.offset_N, num_rows)
    side_N = np.broadcast_to(np.int32(32), num_rows)
    store = MemoryStore(drawn.block, offset_N, side_N, side_N)
    return LabelledImages(ImageIndex(store, side_N, side_N, f"{num_rows} of {DRAWN}"))


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def build_trainer(world: World, scene: Scene, root: str, threads: int = 1) -> Trainer:
    """Return a trainer of the job; the coordinator opens the run folder."""
    torch.set_num_threads(threads)
    config = scene.config(root, threads)
    if world.is_coordinator:
        open_run_folder(config, world.size, world.device.type)
    return Trainer(
        config, world, few_images(scene.num_rows), None, Display(is_shown=False), Watchdog()
    )


def peak_here(world: World, scene: Scene, root: str, steps: int) -> tuple[float, float]:
    """Return the most bytes that this process holds while it trains, and until a checkpoint is
    written."""
    give_back_memory()
    forget_peak()
    trainer = build_trainer(world, scene, root)
    for step, batch in enumerate(trainer.components.loader.batches(0)):
        trainer.train_step(batch)
        if step == steps:
            trained = 1e6 * peak_mb()
            trainer.advance_progress(is_begun=True)
            trainer.save()  # a thread writes while training continues
        if step > steps and not is_saving_somewhere(world):
            break
    with trainer.checkpoint_manager:
        trainer.checkpoint_manager.finish(must_succeed=True)
    saved = 1e6 * peak_mb()
    del trainer, batch
    give_back_memory()
    return trained, saved


def is_saving_somewhere(world: World) -> bool:
    """Return whether a thread of any rank still writes; the same on all ranks, so they do equal
    steps."""
    here = any(thread.name == "saver" for thread in threading.enumerate())
    return reduce_sum(world, torch.tensor(int(here))).item() > 0


def seconds_here(world: World, scene: Scene, root: str, threads: int, steps: int) -> float:
    """Return the least seconds of a step, with its wait for images, after the batches that were
    ready."""
    trainer = build_trainer(world, scene, root, threads)
    batches = trainer.components.loader.batches(0)
    best = float("inf")
    for step in range(WARM_UP + steps):
        started = time.perf_counter()
        seed_step(world, 0, 0, step)
        loss = trainer.train_step(next(batches))
        trainer.state.losses.add(loss, step, scene.batch_size)
        if step >= WARM_UP:
            best = min(best, time.perf_counter() - started)
    batches.close()
    return best


def cpu_seconds_here(world: World) -> float:  # noqa: ARG001 - every function of a pool takes one
    """Return the CPU seconds of this process."""
    return time.process_time()


def busy_seconds() -> float:
    """Return the CPU seconds of all processes on this machine without those with a lower priority
    (nice)."""
    user, _, system, _, _, irq, soft_irq, stolen = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    )
    return (user + system + irq + soft_irq + stolen) / os.sysconf("SC_CLK_TCK")
