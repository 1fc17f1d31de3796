"""Measure the images per second of whole training runs, by number of ranks.

    python -m benchmarks.throughput [--smoke] [--json FILE] [--device auto]

`torchrun -m and_dist train` runs from JPEG files and from packed pixels, with the same global
batch and with the same batch on every rank. The rates are those in metrics.jsonl; a repeat is the
steps between two of its records. The baseline is a plain loop of one process: torchvision in a
DataLoader, the same encoder, a dense softmax over the bank. The floor is the time of the encoder
alone for the same images, on all cores together or on each core by itself, whichever is less.
Losses are compared first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from and_dist.config.load import load_config
from and_dist.config.schema import Config
from and_dist.distributed.world import open_world
from and_dist.models.encoders import build_encoder
from and_dist.models.optim import build_optimiser
from and_dist.runs.metrics_file import read_metrics
from benchmarks.common.harness import Benchmark, add_arguments
from benchmarks.common.images import prepare_files, prepare_shapes
from benchmarks.common.memory import FamilyWatch
from benchmarks.common.peers import (
    DenseBank,
    TorchvisionImages,
    assert_equal_to_ours,
    open_loader,
    train_encoder_alone,
    train_plainly,
    training_transform,
)

DISTINCT, ROWS_COMPARED = 256, 20_000
SECONDS_TO_START = 300
ENCODER_ALONE = "what the encoder alone takes on all cores or GPUs, together or each on its own"


class Case(NamedTuple):
    """Hold one kind of training; a window is the steps between two records."""

    name: str
    encoder: str
    side: int
    rows: int
    batch: int
    window: int
    is_packed: bool


CASES = (
    Case("files", "alexnet", 224, 100_000, 64, 2, False),
    Case("packed", "small", 32, 200_000, 128, 10, True),
)
SMOKE_CASES = (
    Case("files", "small", 64, 4_000, 32, 2, False),
    Case("packed", "small", 32, 20_000, 64, 4, True),
)


Scaled = dict[str, tuple[int, int]]
"""Ranks and global batch, by name."""


class Size(NamedTuple):
    """Hold how often everything is trained anew, and how many windows of each run are timed."""

    turns: int
    windows: int


class Run(NamedTuple):
    """Hold the seconds of each window, the median share that waited for images, and the peak
    memory.

    The memory is that of all processes of the run together.
    """

    seconds: list[float]
    data_wait: float
    peak_mb: float | None = None


def configure(case: Case, folder: Path, device: str, batch: int, name: str) -> Config:
    """Return the config of one run."""
    flip = str(case.side > 32).lower()
    return load_config(
        [],
        [
            f"name={name}",
            "method=instance",
            "curriculum.rounds=0",
            "curriculum.epochs=1",
            f"data.train={folder / 'manifest'}",
            "data.test=null",
            f"data.image_size={case.side}",
            f"data.flip={flip}",
            f"encoder.name={case.encoder}",
            f"optim.batch_size={batch}",
            "objective.temperature=0.07",
            "evaluation.baselines=false",
            f"run.root={folder / 'runs'}",
            f"run.device={device}",
            f"run.log_every={case.window}",
            "run.tensorboard=false",
        ],
    )


def train(case: Case, config: Config, ranks: int, windows: int) -> Run:
    """Train by real workers, which are told to end once they have logged enough steps.

    The first window warms up. Memory is looked at after the timed windows, since looking slows the
    workers down.
    """
    config.folder.mkdir(parents=True)
    given = config.folder.with_suffix(".json")
    given.write_text(config.model_dump_json())
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        "-m",
        "and_dist",
        "train",
        "--quiet",
        "--config",
        str(given),
    ]
    log = config.folder.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            steps = wait_for_steps(process, config, windows + 1, log)[1 : windows + 1]
            watch = FamilyWatch(process.pid)
            wait_for_steps(process, config, windows + 3, log)
            peak_mb = watch.finish()
        finally:
            process.terminate()  # SIGTERM: the workers save and end
            process.wait()
    images = config.optim.batch_size * case.window
    return Run(
        [images / step["images_per_s"] for step in steps],
        statistics.median(step["data_wait"] for step in steps),
        peak_mb,
    )


def wait_for_steps(
    process: subprocess.Popen[bytes], config: Config, count: int, log: Path
) -> list[dict[str, Any]]:
    """Return the "step" records of a run once there are `count`; exit with its log if it ends
    before."""
    started, metrics = time.monotonic(), config.folder / "metrics.jsonl"
    steps: list[dict[str, Any]] = []
    while len(steps) < count:
        is_over = process.poll() is not None
        if is_over or (not steps and time.monotonic() - started > SECONDS_TO_START):
            raise SystemExit(f"training logged too few steps:\n{log.read_text()}")
        time.sleep(0.2)
        steps = read_metrics(metrics, "step") if metrics.exists() else []
    return steps


def train_the_plain_way(
    case: Case, config: Config, sources: list[Any], device: torch.device, windows: int
) -> Run:
    """Train by the plain loop of one process."""
    encoder = build_encoder(config.encoder, 0).to(device)
    dense = DenseBank(case.rows, config.encoder.feature_dim, config.objective.temperature, device)
    images = TorchvisionImages(sources, training_transform(config.data), on_tensors=False)
    loader = open_loader(images, case.batch, os.cpu_count() or 1, shuffle=True)
    optimiser = build_optimiser([encoder], config.optim)
    found = train_plainly(encoder, loader, dense, optimiser, case.window)
    seconds, waits = zip(*islice(found, 1, windows + 1), strict=True)
    watch = FamilyWatch(os.getpid())
    next(found)
    return Run(list(seconds), statistics.median(waits), watch.finish())


def train_the_encoder_alone(
    case: Case, config: Config, device: torch.device, windows: int, threads: int
) -> Run:
    """Train the encoder alone, on a batch that is in memory: forward, backward and optimiser."""
    torch.set_num_threads(threads)
    encoder = build_encoder(config.encoder, 0).to(device)
    optimiser = build_optimiser([encoder], config.optim)
    images_BCHW = torch.rand(case.batch, 3, case.side, case.side, device=device)
    seconds = []
    for _ in range(windows + 1):
        started = time.perf_counter()
        for _ in range(case.window):
            train_encoder_alone(encoder, images_BCHW, optimiser)
        seconds.append(time.perf_counter() - started)
    return Run(seconds[1:], 0.0)


def measure_case(
    benchmark: Benchmark, case: Case, worlds: tuple[int, ...], device: torch.device, size: Size
) -> None:
    """Train in every way in turn, so that a slow minute of the machine affects all alike."""
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base, case.name)
        prepare = prepare_shapes if case.is_packed else prepare_files
        sources = list(prepare(folder, case.rows, DISTINCT))
        config = configure(case, folder, device.type, case.batch, "plain")
        with open_world("cuda" if device.type == "cuda" else "cpu", os.cpu_count()) as world:
            rows = min(case.rows, ROWS_COMPARED)
            assert_equal_to_ours(DenseBank(rows, 128, 0.07, world.device), world)
        runs: dict[str, list[Run]] = {}
        for turn in range(size.turns):
            for threads in threads_alone(device):
                alone = train_the_encoder_alone(case, config, device, size.windows, threads)
                runs.setdefault(encoder_alone(case, threads), []).append(alone)
            torch.set_num_threads(os.cpu_count() or 1)
            plain = train_the_plain_way(case, config, sources, device, size.windows)
            runs.setdefault(f"{case.name}, plain loop", []).append(plain)
            for name, (ranks, batch) in scalings(case, worlds).items():
                print(f"{name}: training, turn {turn + 1} of {size.turns}", flush=True)
                run_name = f"{ranks}-{batch}-{turn}"
                training = configure(case, folder, device.type, batch, run_name)
                runs.setdefault(name, []).append(train(case, training, ranks, size.windows))
    add_runs(benchmark, case, scalings(case, worlds), runs)
    add_ratios(benchmark, case, scalings(case, worlds), device)


def add_runs(benchmark: Benchmark, case: Case, scaled: Scaled, runs: dict[str, list[Run]]) -> None:
    """Add the results of all runs."""
    for name, turns in runs.items():
        _, batch = scaled.get(name, (1, case.batch))
        held = [run.peak_mb for run in turns if run.peak_mb is not None]
        waits = statistics.median(run.data_wait for run in turns)
        seconds = [second for run in turns for second in run.seconds]
        notes = "" if "alone" in name else f"waits {waits:.0%}"
        peak = max(held) if held else None
        benchmark.add(name, seconds, batch * case.window, "images", peak, notes)


def add_ratios(benchmark: Benchmark, case: Case, scaled: Scaled, device: torch.device) -> None:
    """Add the ratios to the plain loop and to one rank, and the floors."""
    one, choices = f"{case.name}, 1 rank", threads_alone(device)
    benchmark.ratio(f"plain_{case.name}", f"{case.name}, plain loop", one)
    least = min(
        benchmark.result(encoder_alone(case, threads)).min_s * threads / max(choices)
        for threads in choices
    )
    for name, (ranks, batch) in scaled.items():
        how = "strong" if batch == case.batch else "weak"
        if ranks > 1:
            benchmark.ratio(f"{how}_{case.name}_{ranks}", one, name)
        rate = 1 / benchmark.seconds_per_unit(name) / ranks
        benchmark.facts[f"{name}: images/s of a rank"] = round(rate, 1)
        where = f"{case.name}_{ranks}{'_weak' if how == 'weak' else ''}"
        devices = ranks if device.type == "cuda" else 1
        benchmark.floor(where, name, least * batch / case.batch / devices, ENCODER_ALONE)


def threads_alone(device: torch.device) -> list[int]:
    """Return the numbers of threads that the encoder alone is tried with; on a GPU only one."""
    cores = os.cpu_count() or 1
    return [cores] if device.type == "cuda" or cores == 1 else [1, cores]


def encoder_alone(case: Case, threads: int) -> str:
    """Return the name of the encoder's own result."""
    return f"{case.name}, the encoder alone, {threads} thread{'s' * (threads > 1)}"


def scalings(case: Case, worlds: tuple[int, ...]) -> Scaled:
    """Return ranks and global batch by name: one rank, then the others with each kind of batch."""
    found = {f"{case.name}, 1 rank": (1, case.batch)}
    for ranks in worlds[1:]:
        found[f"{case.name}, {ranks} ranks, same batch in all"] = ranks, case.batch
        found[f"{case.name}, {ranks} ranks, same batch a rank"] = ranks, ranks * case.batch
    return found


def choose_device(wanted: str) -> torch.device:
    """Return the device; exit with a message if a GPU is asked for and there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda needs an NVIDIA GPU, and there is none here; leave it out")
    has_gpu = wanted != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if has_gpu else "cpu")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    given = parser.parse_args()
    device = choose_device(given.device)
    benchmark = Benchmark("throughput", device.type)
    if device.type == "cpu":
        worlds: tuple[int, ...] = (1, 2) if given.smoke else (1, 2, 4)
        cores = os.cpu_count() or 1
        benchmark.facts["device"] = f"the CPU: all ranks share its {cores} cores"
        if not torch.cuda.is_available():
            benchmark.facts["GPU"] = "no NVIDIA GPU here: nothing is measured on one"
    else:
        worlds = tuple(n for n in (1, 2, 4, 8) if n <= torch.cuda.device_count())
        benchmark.facts["device"] = torch.cuda.get_device_name()
    benchmark.facts["peak MB"] = "all that a job's processes hold, on the host"
    size = Size(1, given.repeats) if given.smoke else Size(2, (given.repeats + 1) // 2)
    for case in SMOKE_CASES if given.smoke else CASES:
        benchmark.facts[case.name] = (
            f"{case.encoder} at {case.side} px, {case.rows:,} rows, batch {case.batch}"
        )
        some = worlds[:1] if given.smoke and not case.is_packed else worlds
        measure_case(benchmark, case, some, device, size)
    benchmark.finish(given.json)


if __name__ == "__main__":
    main()
