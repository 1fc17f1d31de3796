"""python -m benchmarks.saving [--smoke] [--json FILE]

One checkpoint of a rank's shard of the bank and its encoder: how long training stands still when it
writes one itself, and when a thread writes it beside; how long the whole save takes then, and how
long it takes to be compared with its sums and loaded. Training meanwhile is matrix products on one
of the cores.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from and_dist.checkpoint import as_sharded, find_damage, find_whole, save_checkpoint
from and_dist.config import load_config
from and_dist.encoders import build_encoder
from and_dist.run_state import RunState, build_bank, build_state
from and_dist.saving import Saver
from and_dist.world import World, open_world
from benchmarks.harness import Benchmark, Result, add_arguments

ROWS = 640_000
"""Half of ImageNet: a shard of two ranks, 328 MB."""


def build(rows: int, world: World) -> RunState:
    config = load_config([], ["encoder.name=resnet50"])
    encoder = build_encoder(config.encoder, 0)
    return build_state(config, encoder, build_bank(config, rows, world), world)


def save_and_wait(state: RunState, folder: Path, world: World) -> float:
    started = time.perf_counter()
    tensors = state.tensors() | {"bank": as_sharded(state.bank, world)}
    save_checkpoint(folder, "r00-e0001", tensors, state.plain(), world)
    return time.perf_counter() - started


def save_beside(state: RunState, saver: Saver, train: Callable[[], None]) -> tuple[float, float]:
    """What training waited for, and what the save took."""
    saver.start("r00-e0002", state.tensors(), state.bank, state.plain())
    while saver.is_busy():
        train()
    saved = saver.finish()
    assert saved is not None
    assert not saved.failure
    return saved.waited, saved.took


def measure(benchmark: Benchmark, rows: int, repeats: int, folder: Path) -> None:
    with open_world("cpu", threads=1) as world:
        state = build(rows, world)
        saver = Saver(folder, world, 2, lambda _: False)
        factor_MM = torch.rand(512, 512)

        def train() -> None:
            factor_MM @ factor_MM

        alone, waited, took, load = [], [], [], []
        for repeat in range(repeats + 1):
            alone_s = save_and_wait(state, folder, world)
            waited_s, took_s = save_beside(state, saver, train)
            started = time.perf_counter()
            found = find_whole(folder, world, print)
            assert found is not None
            state.load(*found, world)
            load_s = time.perf_counter() - started
            print(f"{alone_s:.2f} s, beside {waited_s:.3f} of {took_s:.2f} s, load {load_s:.2f} s")
            if repeat:
                alone.append(alone_s)
                waited.append(waited_s)
                took.append(took_s)
                load.append(load_s)
        assert not find_damage(folder / "r00-e0002", world)
        size = sum(file.stat().st_size for file in (folder / "r00-e0002").iterdir()) / 1e6
    for name, seconds in {
        "training writes it": alone, "training waits for the thread": waited,
        "the thread writes it": took, "compare and load": load,
    }.items():  # fmt: skip
        median = statistics.median(seconds)
        spread = (max(seconds) - min(seconds)) / median
        benchmark.results.append(Result(name, median, min(seconds), spread, size, "MB"))
    shares = [w / t for w, t in zip(waited, took, strict=True)]
    benchmark.facts["share of the save that training waits"] = f"{statistics.median(shares):.1%}"
    benchmark.facts["checkpoint"] = f"{size:,.0f} MB"
    benchmark.ratios["waiting"] = statistics.median(alone) / statistics.median(waited)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    given = parser.parse_args()
    benchmark = Benchmark("saving")
    rows, repeats = (20_000, 2) if given.smoke else (ROWS, given.repeats)
    with tempfile.TemporaryDirectory() as folder:
        measure(benchmark, rows, repeats, Path(folder))
    benchmark.finish(given.json)


if __name__ == "__main__":
    main()
