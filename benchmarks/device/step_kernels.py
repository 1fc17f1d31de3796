"""List the places where a training step waits for the GPU, and the operators and kernels of a step.

    python -m benchmarks.device.step_kernels [alexnet] [--rows N]

Ends with exit code 1 if a step waits. benchmarks.device.gpu times steps.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from and_dist.distributed.world import open_world
from and_dist.models.encoders import ENCODERS
from and_dist.training import state
from benchmarks.device.gpu import AS_NEW_RUNS, IMAGENET, batch_on, draw_normal_rows
from benchmarks.device.requirements import require_gpu
from benchmarks.step import Scene, build_trainer

WARM_UP = 8
PROFILED_STEPS = 3


def scene_of(network: str, rows: int) -> Scene:
    """Return the size of images and batch that a network is made for."""
    is_small = network in ("small", "tiny") or network.startswith("cifar")
    return Scene(network, 32, rows, 128) if is_small else Scene(network, 224, rows, 256)


def show_waits(step: Callable[[], object]) -> int:
    """Print every place in a step where the host waits for the GPU, and return their number."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "synchronizing" in str(warning.message)]
    for wait in waits:
        print(f"   WAITS in a step: {wait.filename}:{wait.lineno} {str(wait.message)[:80]}")
    print(f"places where a step waits: {len(waits)}", flush=True)
    return len(waits)


def show_kernels(step: Callable[[], object]) -> None:
    """Print the operators and kernels of some steps by their time, and how many were launched."""
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        for _ in range(PROFILED_STEPS):
            step()
        torch.cuda.synchronize()
    events = profiled.key_averages()
    table = events.table(sort_by="self_cuda_time_total", row_limit=28, max_name_column_width=70)
    print(table)
    launches = sum(event.count for event in events if "LaunchKernel" in event.key)
    print(f"launches of {PROFILED_STEPS} steps: {launches}", flush=True)


def main() -> int:
    """Examine a step of one network as a new run trains it, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", nargs="?", choices=sorted(ENCODERS), default="alexnet")
    parser.add_argument("--rows", type=int, default=IMAGENET, help="rows of the bank")
    given = parser.parse_args()
    require_gpu()
    scene = scene_of(given.network, given.rows)
    with (
        patch.object(state, "draw_uniform_rows", draw_normal_rows),
        tempfile.TemporaryDirectory() as folder,
        open_world("cuda") as world,
    ):
        trainer = build_trainer(scene, world, Path(folder), *AS_NEW_RUNS)
        batch = batch_on(trainer, scene, world.device)

        def step() -> object:
            """Train one step."""
            return trainer.train_step(batch)

        for _ in range(WARM_UP):
            step()
        num_waits = show_waits(step)
        show_kernels(step)
    return int(num_waits > 0)


if __name__ == "__main__":
    sys.exit(main())
