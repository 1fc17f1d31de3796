"""Time whole training steps on one NVIDIA GPU, with images that are drawn there.

    python -m benchmarks.device.gpu [--smoke] [--json FILE]

AlexNet and ResNet18 at 224 pixels and the demo's network at 32 train over a bank of ImageNet's
size: as a new run trains on the GPU that it finds, and in float32. Beside each step stand its
encoder and its partition alone, their share of it, and the share of the GPU's own matrix rate.
benchmarks.device.partition_times has the partition at other sizes; benchmarks.device.loader_times
and benchmarks.throughput measure what feeds a GPU.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

from and_dist.data.loader import Batch
from and_dist.distributed.world import World, open_world
from and_dist.method.partition import log_partition
from and_dist.planning.costs import COSTS, TRAINING
from and_dist.training import state
from and_dist.training.trainer import Trainer
from benchmarks.common.harness import Benchmark, add_arguments
from benchmarks.device.figures import extra_mb
from benchmarks.device.requirements import require_gpu
from benchmarks.step import Scene, build_trainer, make_batch

IMAGENET, SMOKE_ROWS = 1_281_167, 2_000
AS_NEW_RUNS = ("run.device=cuda", "encoder.precision=auto")
IN_FLOAT32 = ("run.device=cuda", "encoder.precision=float32", "bank.products=stored")


class Way(NamedTuple):
    """Hold a scene, a way to train it, and its name."""

    name: str
    scene: Scene
    options: tuple[str, ...]


def ways(rows: int) -> tuple[Way, ...]:
    """Return what is timed, with banks of so many rows."""
    alexnet, resnet18 = (Scene(name, 224, rows, 256) for name in ("alexnet", "resnet18"))
    return (
        Way("AlexNet", alexnet, AS_NEW_RUNS),
        Way("ResNet18", resnet18, AS_NEW_RUNS),
        Way("small", Scene("small", 32, rows, 128), AS_NEW_RUNS),
        Way("AlexNet in float32", alexnet, IN_FLOAT32),
    )


def smoke_ways() -> tuple[Way, ...]:
    """Return a step of a moment, to see that the benchmark runs."""
    return (Way("tiny", Scene("tiny", 32, SMOKE_ROWS, 4), AS_NEW_RUNS),)


def draw_normal_rows(start: int, stop: int, dim: int, seed: int) -> Tensor:
    """Return rows that are drawn quickly and all at once; no figure depends on their values.

    The bank's own rows are drawn one by one from counters, which takes longer than all steps here.
    """
    random = torch.Generator().manual_seed(seed)
    rows_SD = torch.randn(stop - start, dim, generator=random)
    return rows_SD.mul_(dim**-0.5)


def batch_on(trainer: Trainer, scene: Scene, device: torch.device) -> Batch:
    """Return a batch that lies on the GPU as the loader would have left it there."""
    images_BCHW, rows_B = make_batch(scene)
    precision = trainer.state.encoder.precision
    images_BCHW = images_BCHW.to(device, precision, memory_format=torch.channels_last)
    return Batch(images_BCHW, rows_B.to(device))


def measure_way(benchmark: Benchmark, way: Way, world: World, repeats: int) -> None:
    """Measure a step and its parts, and note their shares."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(way.scene, world, Path(folder), *way.options)
    batch = batch_on(trainer, way.scene, world.device)
    bank, encoder = trainer.state.bank, trainer.state.encoder
    dim = bank.features_SD.shape[1]
    queries_BD = torch.randn(way.scene.batch, dim, device=world.device)
    queries_BD = functional.normalize(queries_BD, dim=1)
    temperature = trainer.config.objective.temperature

    def both_passes() -> None:
        """Run the encoder forward and backward."""
        encoder(batch.images_BCHW).sum().backward()
        encoder.zero_grad()

    def partition() -> object:
        """Compute the partition of the batch."""
        given = queries_BD, bank.multiplied_SD, temperature, bank.products, bank.form
        return log_partition(*given)

    cases: dict[str, Callable[[], object]] = {
        way.name: lambda: trainer.train_step(batch),
        f"{way.name}, its encoder": both_passes,
        f"{way.name}, its partition": partition,
    }
    images = dict.fromkeys(cases, way.scene.batch)
    benchmark.measure(cases, repeats, images, "images", warm_up=8)
    benchmark.result(way.name).peak_mb = extra_mb(cases[way.name])
    note_shares(benchmark, way, trainer)


def note_shares(benchmark: Benchmark, way: Way, trainer: Trainer) -> None:
    """Note how the step is trained, and the shares of its partition and of the matrix rate."""
    step_s = benchmark.result(way.name).min_s
    part_s = benchmark.result(f"{way.name}, its partition").min_s
    config = trainer.config
    operations = TRAINING * COSTS[way.scene.network].multiplications * way.scene.batch
    per_s = 1e9 * benchmark.rates_before["gpu_matrix_bf16_gflops"]
    benchmark.facts[f"{way.name}: trained in"] = (
        f"{config.encoder.precision}, products {config.bank.products} by {config.bank.form}"
    )
    benchmark.facts[f"{way.name}: share of the partition"] = f"{part_s / step_s:.1%}"
    benchmark.facts[f"{way.name}: of the GPU's matrix rate"] = f"{operations / step_s / per_s:.1%}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, repeats=20)
    given = parser.parse_args()
    require_gpu()
    benchmark = Benchmark("gpu", "cuda")
    with open_world("cuda") as world, patch.object(state, "draw_uniform_rows", draw_normal_rows):
        for way in smoke_ways() if given.smoke else ways(IMAGENET):
            measure_way(benchmark, way, world, given.repeats)
            # The next way's tensors would otherwise be fitted around this one's cached blocks.
            torch.cuda.empty_cache()
    benchmark.finish(given.json)


if __name__ == "__main__":
    main()
