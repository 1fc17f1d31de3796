"""Measure how long a checkpoint takes to save and load, and how long training waits for it.

    python -m benchmarks.checkpoint [--smoke] [--json FILE]

A checkpoint of a rank's shard of the bank and its encoder is written by training itself, and by a
thread while training continues; then it is compared with its checksums and loaded. In place of
training, matrices are multiplied on one of the cores. The baseline is the same tensors by
torch.save and torch.load, which neither flush nor compare. The floors are the bytes over the rates
of the disk and the page cache in this run; for the time that training waits, over the rate of a
copy in memory.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from and_dist.checkpoint.storage import (
    find_corruption,
    find_latest_valid,
    save_checkpoint,
)
from and_dist.config.load import load_config
from and_dist.distributed.world import World, open_world
from and_dist.training.checkpointing import AsyncWriter
from and_dist.training.state import RunState
from benchmarks.common.harness import Benchmark, parse_arguments
from benchmarks.common.memory import extra_peak_mb
from benchmarks.common.rates import read_rate, write_rate
from benchmarks.common.states import build_untrained_state

ROWS = 640_000
"""Half of ImageNet, 328 MB: the shard of each of two ranks."""
ALONE, BESIDE, WAITED, LOAD = (
    "training writes it",
    "the thread writes it",
    "training waits for the thread",
    "compare and load",
)
TORCH_SAVE, TORCH_LOAD = "torch.save by training", "torch.load"


def build(rows: int, world: World) -> RunState:
    """Return the state of a run with a ResNet50 and a bank of `rows` rows."""
    return build_untrained_state(load_config([], ["encoder.name=resnet50"]), rows, world)


class Checkpoints:
    """Write and read the same state in each of the ways, in a folder."""

    def __init__(self, state: RunState, folder: Path, world: World) -> None:
        """Open a writer in the folder."""
        self.state, self.folder, self.world = state, folder, world
        self.saver = AsyncWriter(folder, world, 2, lambda _: False)
        self.matrix = torch.rand(512, 512)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state's tensors and the bank."""
        return self.state.tensors() | {"bank": self.state.bank.features_SD}

    def plain(self) -> dict[str, Any]:
        """Return the state's plain values, and those that training writes beside them."""
        images = {"rows": self.state.bank.num_rows, "content_hash": "0"}
        return self.state.plain() | {"images": images, "config": {}, "metrics_bytes": 0}

    def save_alone(self) -> None:
        """Save a checkpoint while training stands still."""
        state = self.state
        tensors, plain = state.tensors(), self.plain()
        save_checkpoint(self.folder, "r00-e0001", tensors, plain, self.world, state.bank)

    def save_beside(self) -> tuple[float, float]:
        """Save in a thread; return the seconds that training waited, and those of the whole
        save."""
        state = self.state
        self.saver.start("r00-e0002", state.tensors(), state.bank, self.plain())
        while self.saver.is_busy():
            self.matrix @ self.matrix  # stands for training
        saved = self.saver.finish()
        assert saved is not None
        assert not saved.failure
        return saved.waited, saved.took

    def load(self) -> None:
        """Compare the newest checkpoint with its checksums and load it."""
        found = find_latest_valid(self.folder, self.world, print)
        assert found is not None
        self.state.load(*found, self.world)

    def torch_save(self) -> None:
        """Save the same tensors by torch.save."""
        torch.save({"tensors": self.tensors(), "plain": self.state.plain()}, self.folder / "all.pt")

    def torch_load(self) -> None:
        """Load by torch.load into the existing tensors, as our own loading does."""
        loaded = torch.load(self.folder / "all.pt", weights_only=True)["tensors"]
        for name, tensor in self.tensors().items():
            tensor.copy_(loaded[name])

    def assert_equal(self) -> None:
        """Assert that both ways load what was saved."""
        self.save_beside()
        self.torch_save()
        before = {name: tensor.clone() for name, tensor in self.tensors().items()}
        for load in (self.load, self.torch_load):
            for tensor in self.tensors().values():
                tensor.zero_()
            load()
            # Rows without a neighbourhood have an entropy of NaN.
            torch.testing.assert_close(self.tensors(), before, rtol=0, atol=0, equal_nan=True)


def timed(case: Callable[[], object]) -> float:
    """Return the seconds that a case takes."""
    started = time.perf_counter()
    case()
    return time.perf_counter() - started


def measure(checkpoints: Checkpoints, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each case, in interleaved repeats after one to warm up."""
    names = (TORCH_SAVE, ALONE, BESIDE, WAITED, TORCH_LOAD, LOAD)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats + 1):
        found = [timed(checkpoints.torch_save), timed(checkpoints.save_alone)]
        waited, took = checkpoints.save_beside()
        found += [took, waited, timed(checkpoints.torch_load), timed(checkpoints.load)]
        print(", ".join(f"{n} {s:.3f} s" for n, s in zip(names, found, strict=True)), flush=True)
        if repeat:
            for name, second in zip(names, found, strict=True):
                seconds[name].append(second)
    return seconds


def measure_memory(checkpoints: Checkpoints) -> dict[str, float]:
    """Return the extra memory of each case's first run: the thread's copies are kept for the next
    save."""
    checkpoints.saver = AsyncWriter(checkpoints.folder, checkpoints.world, 2, lambda _: False)
    return {
        TORCH_SAVE: extra_peak_mb(checkpoints.torch_save),
        ALONE: extra_peak_mb(checkpoints.save_alone),
        BESIDE: extra_peak_mb(checkpoints.save_beside),
        TORCH_LOAD: extra_peak_mb(checkpoints.torch_load),
        LOAD: extra_peak_mb(checkpoints.load),
    }


def add_floors(benchmark: Benchmark, folder: Path, size_mb: float) -> None:
    """Add the ratios to the rates of disk, page cache and memory."""
    size = round(1e6 * size_mb)
    cached, flushed = write_rate(folder, size)
    reading = read_rate(folder, size)
    copying = 1e3 * benchmark.rates["copy_gb_s"]
    benchmark.facts["written here"] = (
        f"{cached:,.0f} MB/s to the page cache, {flushed:,.0f} flushed"
    )
    benchmark.facts["read here"] = f"{reading:,.0f} MB/s from the page cache"
    for name, ours, rate, why in (
        ("torch_save", TORCH_SAVE, cached, "written to the page cache"),
        ("alone", ALONE, flushed, "written and flushed"),
        ("beside", BESIDE, flushed, "written and flushed"),
        ("waiting", WAITED, copying, "copied in memory"),
        ("load", LOAD, reading, "read from the page cache"),
    ):
        benchmark.floor(name, ours, size_mb / rate, f"{size_mb:,.0f} MB {why}")


def main() -> None:
    """Run the benchmark."""
    given = parse_arguments(__doc__ or "")
    benchmark = Benchmark("checkpoint", threads=1)
    rows = 20_000 if given.smoke else ROWS
    with tempfile.TemporaryDirectory() as base, open_world("cpu", threads=1) as world:
        folder = Path(base)
        checkpoints = Checkpoints(build(rows, world), folder, world)
        checkpoints.assert_equal()
        seconds = measure(checkpoints, given.repeats)
        peaks = measure_memory(checkpoints)
        assert not find_corruption(folder / "r00-e0002", world)
        size = sum(file.stat().st_size for file in (folder / "r00-e0002").iterdir()) / 1e6
        for name, repeats in seconds.items():
            benchmark.add(name, repeats, size, "MB", peaks.get(name))
        add_floors(benchmark, folder, size)
    shares = [w / t for w, t in zip(seconds[WAITED], seconds[BESIDE], strict=True)]
    benchmark.facts["share of the save that training waits"] = f"{statistics.median(shares):.1%}"
    benchmark.facts["checkpoint"] = f"{size:,.0f} MB"
    benchmark.ratio("waiting", TORCH_SAVE, WAITED)
    benchmark.ratio("waiting_over_own_writing", ALONE, WAITED)
    benchmark.ratio("saving", TORCH_SAVE, BESIDE)
    benchmark.ratio("loading", TORCH_LOAD, LOAD)
    benchmark.finish(given.json)


if __name__ == "__main__":
    main()
