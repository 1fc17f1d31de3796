"""Time a whole training step on a GPU, and find the places where the host waits for the GPU.

    python -m benchmarks.device.step_times [alexnet] [--rows N] [--steps N]

A step is timed in four settings, each with the batch on the GPU and with row ids that come from the
CPU as the loader brings them. In the first setting the encoder is timed alone too, and the host's
waits and the kernels of a step are listed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from and_dist.data.loader import Batch
from and_dist.distributed.world import World, open_world
from and_dist.models.encoders import ENCODERS
from and_dist.training import state
from and_dist.training.trainer import Trainer
from benchmarks.device.requirements import require_gpu
from benchmarks.step import Scene, build_trainer, make_batch

IMAGENET = 1_281_167
WARM_UP = 8
PROFILED_STEPS = 3
BFLOAT16 = ("encoder.precision=bfloat16", "bank.dtype=bfloat16")


@dataclass(frozen=True)
class Setting:
    """Describe one way to configure a step."""

    name: str
    options: tuple[str, ...]
    is_cudnn_searching: bool = False
    """True if cuDNN tries its algorithms for each shape and keeps the fastest."""
    is_examined: bool = False


SETTINGS = (
    Setting("bfloat16, bank bfloat16", BFLOAT16, is_examined=True),
    Setting("the same, cudnn.benchmark", BFLOAT16, is_cudnn_searching=True),
    Setting("float32, bank float32", ()),
    Setting("bfloat16, bank float32", BFLOAT16[:1]),
)


def scene_of(network: str, rows: int) -> Scene:
    """Return the size of images and batch that a network is made for."""
    is_small = network in ("small", "tiny") or network.startswith("cifar")
    return Scene(network, 32, rows, 128) if is_small else Scene(network, 224, rows, 256)


def draw_normal_rows(start: int, stop: int, dim: int, seed: int) -> Tensor:
    """Return rows that are drawn quickly and all at once; no figure depends on their values.

    The bank's own rows are drawn one by one from counters, which takes longer than all steps here.
    """
    random = torch.Generator().manual_seed(seed)
    rows_SD = torch.randn(stop - start, dim, generator=random)
    return rows_SD.mul_(dim**-0.5)


def time_steps(name: str, step: Callable[[], object], batch_size: int, count: int) -> None:
    """Print the mean time of a step, and the time after which the CPU had queued it."""
    for _ in range(WARM_UP):
        step()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(count):
        step()
    queued_s = (time.perf_counter() - begun) / count
    torch.cuda.synchronize()
    step_s = (time.perf_counter() - begun) / count
    print(
        f"{name:60} {1e3 * step_s:8.2f} ms a step, {batch_size / step_s:9,.0f} images/s; "
        f"the CPU was done after {1e3 * queued_s:6.2f} ms",
        flush=True,
    )


def show_waits(step: Callable[[], object]) -> None:
    """Print every place in a step where the host waits for the GPU; there should be none."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "synchronizing" in str(warning.message)]
    for wait in waits:
        print(f"   WAITS in a step: {wait.filename}:{wait.lineno} {str(wait.message)[:80]}")
    print(f"places where a step waits: {len(waits)}", flush=True)


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


def time_setting(scene: Scene, setting: Setting, world: World, folder: Path, count: int) -> None:
    """Time a step in one setting, and examine it if the setting says so."""
    torch.backends.cudnn.benchmark = setting.is_cudnn_searching
    trainer = build_trainer(scene, world, folder, "run.device=cuda", *setting.options)
    images_BCHW, cpu_rows_B = make_batch(scene)
    images_BCHW = images_BCHW.to(
        world.device, trainer.state.encoder.precision, memory_format=torch.channels_last
    )
    rows_B = cpu_rows_B.to(world.device)
    name = f"{scene.network} {setting.name}"

    def step() -> object:
        """Train one step whose batch lies on the GPU."""
        return trainer.train_step(Batch(images_BCHW, rows_B))

    def step_with_rows_from_the_cpu() -> object:
        """Train one step whose row ids are copied to the GPU first."""
        return trainer.train_step(Batch(images_BCHW, cpu_rows_B.to(world.device)))

    time_steps(name, step, scene.batch, count)
    time_steps(f"{name}, rows from the CPU", step_with_rows_from_the_cpu, scene.batch, count)
    if setting.is_examined:
        examine(name, trainer, Batch(images_BCHW, rows_B), count)


def examine(name: str, trainer: Trainer, batch: Batch, count: int) -> None:
    """Time the encoder alone, then list the waits and the kernels of a step."""

    def both_passes() -> None:
        """Run the encoder forward and backward."""
        trainer.state.encoder(batch.images_BCHW).sum().backward()
        trainer.state.encoder.zero_grad()

    def step() -> object:
        """Train one step."""
        return trainer.train_step(batch)

    time_steps(f"{name}, encoder alone", both_passes, len(batch.rows_B), count)
    show_waits(step)
    show_kernels(step)


def main() -> None:
    """Time one network in all settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", nargs="?", choices=sorted(ENCODERS), default="alexnet")
    parser.add_argument("--rows", type=int, default=IMAGENET, help="rows of the bank")
    parser.add_argument("--steps", type=int, default=30, help="steps that are timed")
    given = parser.parse_args()
    require_gpu()
    scene = scene_of(given.network, given.rows)
    with (
        patch.object(state, "draw_uniform_rows", draw_normal_rows),
        tempfile.TemporaryDirectory() as folder,
        open_world("cuda") as world,
    ):
        for number, setting in enumerate(SETTINGS):
            time_setting(scene, setting, world, Path(folder) / str(number), given.steps)
            # The next setting's tensors would otherwise be fitted around this one's cached blocks.
            torch.cuda.empty_cache()
        print("most memory, MB:", torch.cuda.max_memory_allocated() // 10**6)


if __name__ == "__main__":
    main()
