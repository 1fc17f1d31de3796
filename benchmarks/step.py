"""Time one whole training step with images in memory, in one process with all cores.

    python -m benchmarks.step [--smoke] [--json FILE] [--options]

AlexNet at 224 pixels trains over a bank of ImageNet's size, and the small network over 200,000
rows. Ours is Trainer.train_step, in float32 and with a network of 16 bits. Compared are the
published code's step, and lightly's memory bank where that package is installed. --options measures
the settings of a step instead, from which their defaults are chosen.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from and_dist.config.load import load_config
from and_dist.config.schema import Config
from and_dist.data.index import ImageIndex, LabelledImages
from and_dist.data.loader import Batch
from and_dist.data.stores import MemoryStore
from and_dist.distributed.watchdog import Watchdog
from and_dist.distributed.world import World, open_world
from and_dist.method.memory_bank import draw_uniform_rows
from and_dist.models.encoders import build_encoder
from and_dist.planning.costs import COSTS
from and_dist.runs.console import Display
from and_dist.runs.folder import open_run_folder
from and_dist.training.trainer import Trainer
from benchmarks.common.harness import Benchmark, add_arguments

TEMPERATURE = 0.07
NARROW = ("encoder.precision=bfloat16",)
MOST_OFF_IN_16_BITS = 0.1
"""The largest difference of the first loss, which is ten or more."""


@dataclass(frozen=True)
class Scene:
    """Hold a network, the side of its images, the rows of the bank and the batch."""

    network: str
    side: int
    rows: int
    batch: int

    def config(self, folder: Path, *options: str) -> Config:
        """Return the config of a run in `folder` that trains this."""
        return load_config(
            [],
            [
                f"run.root={folder}",
                f"encoder.name={self.network}",
                f"data.image_size={self.side}",
                f"optim.batch_size={self.batch}",
                f"objective.temperature={TEMPERATURE}",
                "run.tensorboard=false",
                "evaluation.baselines=false",
                "run.device=cpu",
                *options,
            ],
        )


SCENES = {
    "alexnet": Scene("alexnet", 224, 1_281_167, 256),
    "small": Scene("small", 32, 200_000, 128),
}
SMOKE = {
    "alexnet": Scene("alexnet", 224, 100_000, 16),
    "small": Scene("small", 32, 50_000, 64),
}


def index_of(scene: Scene) -> ImageIndex:
    """Return an index of `scene.rows` rows of one image; no step of this benchmark reads it."""
    sides_N = np.full(scene.rows, scene.side, np.int32)
    pixels = np.zeros(3 * scene.side**2, np.uint8)
    store = MemoryStore(pixels, np.zeros(scene.rows, np.int64), sides_N, sides_N, "benchmark")
    return ImageIndex(store, sides_N, sides_N, f"benchmark of {scene.rows}")


def build_trainer(scene: Scene, world: World, folder: Path, *options: str) -> Trainer:
    """Return a trainer with its run folder open."""
    config = scene.config(folder, *options)
    open_run_folder(config, world.size, world.device.type)
    images = LabelledImages(index_of(scene))
    return Trainer(config, world, images, None, Display(is_shown=False), Watchdog())


def make_batch(scene: Scene) -> Batch:
    """Return a batch of random images and rows."""
    random = torch.Generator().manual_seed(0)
    rows_B = torch.randperm(scene.rows, generator=random)[: scene.batch]
    shape = (scene.batch, 3, scene.side, scene.side)
    return Batch(torch.randn(shape, generator=random), rows_B)


class PublishedMemory(torch.autograd.Function):
    """Compute the published code's non-parametric classifier over the whole memory.

    Forward returns all similarities. Backward returns the gradient in the features, and writes the
    new rows of the memory.
    """

    @staticmethod
    def forward(ctx: Any, features_BD: Tensor, rows_B: Tensor, memory_ND: Tensor) -> Tensor:
        """Return all similarities over the temperature, [B, N]."""
        ctx.save_for_backward(features_BD, rows_B)
        ctx.memory_ND = memory_ND
        return (features_BD @ memory_ND.T).div_(TEMPERATURE)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient in the features, [B, D], and update the batch's rows."""
        features_BD, rows_B = ctx.saved_tensors
        memory_ND = ctx.memory_ND
        gradient_BD = gradients[0].div(TEMPERATURE) @ memory_ND
        new_BD = memory_ND[rows_B].mul_(0.5).add_(features_BD, alpha=0.5)
        memory_ND.index_copy_(0, rows_B, functional.normalize(new_BD, dim=1))
        return gradient_BD, None, None


class Published:
    """Run the published code's step: DataParallel, softmax, the logarithm, SGD with momentum."""

    def __init__(self, scene: Scene, config: Config) -> None:
        """Build the network, the memory and the optimiser."""
        encoder = build_encoder(config.encoder, config.seed, config.data.image_size)
        self.network = nn.DataParallel(encoder)
        self.memory_ND = draw_uniform_rows(0, scene.rows, 128, config.seed)
        self.optimiser = torch.optim.SGD(
            self.network.parameters(), lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4
        )

    def step(self, batch: Batch) -> Tensor:
        """Train one step and return the loss."""
        features_BD = self.network(batch.images_BCHW)
        logits_BN = PublishedMemory.apply(features_BD, batch.rows_B, self.memory_ND)
        p_BN = logits_BN.softmax(dim=1)
        loss: Tensor = -p_BN.gather(1, batch.rows_B[:, None]).log().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.detach()


def lightly_step(scene: Scene, config: Config) -> Callable[[Batch], Tensor]:
    """Return a step with lightly's NTXentLoss and a memory bank of as many rows.

    The second view of each image, which MoCo takes from another network without gradients, is drawn
    once and costs nothing.
    """
    from lightly.loss import NTXentLoss

    network = build_encoder(config.encoder, config.seed, config.data.image_size)
    loss_of = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(scene.rows, 128))
    optimiser = torch.optim.SGD(
        network.parameters(), lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    keys_BD = functional.normalize(torch.randn(scene.batch, 128), dim=1)

    def step(batch: Batch) -> Tensor:
        loss: Tensor = loss_of(network(batch.images_BCHW), keys_BD)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step


def measure(benchmark: Benchmark, scene: Scene, repeats: int, world: World) -> None:
    """Assert equal steps, then measure all steps of one scene."""
    network, batch = scene.network, make_batch(scene)
    direction_BD = torch.randn(scene.batch, 128)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(scene, world, Path(folder))
        published = Published(scene, trainer.config)
        narrow = build_trainer(scene, world, Path(folder) / "narrow", *NARROW)
        loss = assert_equal_steps(trainer, published, batch)
        assert (narrow.train_step(batch) - loss).abs() < MOST_OFF_IN_16_BITS

        def both_passes() -> None:
            trainer.state.encoder(batch.images_BCHW).backward(direction_BD)
            trainer.state.encoder.zero_grad()

        cases: dict[str, Callable[[], object]] = {
            f"{network}, ours": lambda: trainer.train_step(batch),
            f"{network}, ours, {NARROW[0]}": lambda: narrow.train_step(batch),
            f"{network}, published form": lambda: published.step(batch),
            f"{network}, encoder alone": both_passes,
        }
        if find_spec("lightly"):
            lightly = lightly_step(scene, trainer.config)
            cases[f"{network}, lightly's memory bank"] = lambda: lightly(batch)
        else:
            benchmark.facts["lightly"] = "not installed: `pip install lightly`"
        work = dict.fromkeys(cases, scene.batch)
        benchmark.measure(cases, repeats, work, "images", measure_memory=True)
        products = products_of(trainer)
    benchmark.facts[f"{network}: products with the bank in"] = str(products).removeprefix("torch.")
    add_ratios(benchmark, scene, list(cases), products)


def assert_equal_steps(trainer: Trainer, published: Published, batch: Batch) -> Tensor:
    """Assert that loss, bank rows and weights agree after one step; return the loss.

    In 16 bits they have to agree as closely as these allow.
    """
    is_narrow = products_of(trainer).itemsize < 4
    ours, loss = trainer.train_step(batch), published.step(batch)
    assert (ours - loss).abs() < (1e-2 if is_narrow else 1e-3), f"losses: {ours}, {loss}"
    updated_BD = trainer.state.bank.features_SD[batch.rows_B]
    torch.testing.assert_close(updated_BD, published.memory_ND[batch.rows_B], rtol=0, atol=1e-4)
    first = build_encoder(trainer.config.encoder, trainer.config.seed)
    networks = trainer.state.encoder, published.network.module, first
    apart = moved = 0.0
    with torch.no_grad():
        for ours, theirs, before in zip(*(n.parameters() for n in networks), strict=True):
            apart += (ours - theirs).square().sum().item()
            moved += (theirs - before).square().sum().item()
    error = (apart / moved) ** 0.5
    assert error < (0.1 if is_narrow else 0.02), f"weights: steps are {error:.1%} apart"
    return loss


def products_of(trainer: Trainer) -> torch.dtype:
    """Return the type in which queries and bank are multiplied."""
    bank = trainer.state.bank
    return bank.products or bank.features_SD.dtype


def add_ratios(benchmark: Benchmark, scene: Scene, names: list[str], products: torch.dtype) -> None:
    """Add the ratios of medians, and the floor.

    The floor is the time of all operations of a step at the machine's own rates of matrix products.
    """
    network = scene.network
    ours = f"{network}, ours"
    for name, key in (
        ("published form", "published"),
        ("lightly's memory bank", "lightly"),
        ("encoder alone", "encoder_alone"),
    ):
        if f"{network}, {name}" in names:
            benchmark.ratio(f"{key}_{network}", f"{network}, {name}", ours)
    in_16_bits = f"{network}, ours, {NARROW[0]}"
    benchmark.ratio(f"published_{network}_16bit", f"{network}, published form", in_16_bits)
    encoder = 1e-9 * scene.batch * COSTS[network].operations(scene.side)
    partition = 4e-9 * scene.batch * scene.rows * 128
    rate = benchmark.rates["matrix_fp32_gflops"]
    rate_of_products = rate if products.itemsize > 2 else benchmark.rates["matrix_bf16_gflops"]
    least = encoder / rate + partition / rate_of_products
    why = f"{encoder:,.0f} GFLOP of encoder, {partition:,.0f} of partition"
    benchmark.floor(network, ours, least, why)


OPTIONS = {
    "as it is": (),
    "encoder.channels_last=false": ("encoder.channels_last=false",),
    "encoder.precision=bfloat16": ("encoder.precision=bfloat16",),
    "encoder.compile=true": ("encoder.compile=true",),
    "optim.fused=false": ("optim.fused=false",),
}


def measure_options(benchmark: Benchmark, scene: Scene, repeats: int, world: World) -> None:
    """Measure each setting alone beside the defaults, over a small bank so that the network
    dominates."""
    cases: dict[str, Callable[[], object]] = {}
    batch = make_batch(scene)
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, options) in enumerate(OPTIONS.items()):
            trainer = build_trainer(scene, world, Path(folder) / str(number), *options)
            cases[f"{scene.network}, {name}"] = lambda t=trainer: t.train_step(batch)
        benchmark.measure(cases, repeats, dict.fromkeys(cases, scene.batch), "images")
    usual = benchmark.result(f"{scene.network}, as it is").min_s
    for name in list(OPTIONS)[1:]:
        ours = benchmark.result(f"{scene.network}, {name}").min_s
        benchmark.ratios[f"{scene.network}, {name}"] = usual / ours


OPTION_SCENES = (
    Scene("alexnet", 224, 10_000, 64),
    Scene("resnet18", 224, 10_000, 16),
    Scene("cifar_resnet18", 32, 10_000, 32),
    Scene("small", 32, 10_000, 128),
)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--options", action="store_true", help="measure the settings of a step")
    given = parser.parse_args()
    benchmark = Benchmark("step options" if given.options else "step")
    with open_world("cpu", threads=os.cpu_count()) as world:
        if given.options:
            for scene in OPTION_SCENES[-1:] if given.smoke else OPTION_SCENES:
                measure_options(benchmark, scene, given.repeats, world)
        else:
            for scene in (SMOKE if given.smoke else SCENES).values():
                measure(benchmark, scene, given.repeats, world)
    benchmark.finish(given.json)


if __name__ == "__main__":
    main()
