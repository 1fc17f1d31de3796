"""python -m benchmarks.step [--smoke] [--json FILE] [--options]

One whole training step, images in memory, one process with all cores: AlexNet at 224 pixels over
a bank of ImageNet's size, and the small network over 200,000 rows. Ours is Trainer.train_step;
beside it the published code's step, and lightly's memory bank where that package is installed.
--options measures the settings of a step instead, which is what their defaults come from.
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

from and_dist.bank import draw_uniform_rows
from and_dist.config import Config, load_config
from and_dist.data.index import ImageIndex, LabelledImages
from and_dist.data.loader import Batch
from and_dist.data.stores import MemoryStore
from and_dist.display import Display
from and_dist.encoders import build_encoder
from and_dist.guard import Guard
from and_dist.run_folder import open_run_folder
from and_dist.trainer import Trainer
from and_dist.world import World, open_world
from benchmarks.harness import Benchmark, add_arguments
from benchmarks.memory import extra_peak_mb

TEMPERATURE = 0.07


@dataclass(frozen=True)
class Scene:
    """What is trained: a network, images of a side, a bank of so many rows, a batch."""

    network: str
    side: int
    rows: int
    batch: int

    def config(self, folder: Path, *options: str) -> Config:
        return load_config([], [
            f"run.root={folder}", f"encoder.name={self.network}", f"data.image_size={self.side}",
            f"optim.batch_size={self.batch}", f"objective.temperature={TEMPERATURE}",
            "run.tensorboard=false", "evaluation.baselines=false", "run.device=cpu", *options,
        ])  # fmt: skip


SCENES = {
    "alexnet": Scene("alexnet", 224, 1_281_167, 256),
    "small": Scene("small", 32, 200_000, 128),
}
SMOKE = {
    "alexnet": Scene("alexnet", 224, 100_000, 16),
    "small": Scene("small", 32, 50_000, 64),
}


def index_of(scene: Scene) -> ImageIndex:
    """As many rows as wanted, all of one image, which no step of this benchmark reads."""
    sides_N = np.full(scene.rows, scene.side, np.int32)
    pixels = np.zeros(3 * scene.side**2, np.uint8)
    store = MemoryStore(pixels, np.zeros(scene.rows, np.int64), sides_N, sides_N, "benchmark")
    return ImageIndex(store, sides_N, sides_N, f"benchmark of {scene.rows}")


def build_trainer(scene: Scene, world: World, folder: Path, *options: str) -> Trainer:
    config = scene.config(folder, *options)
    open_run_folder(config, world.size, world.device.type)
    images = LabelledImages(index_of(scene))
    return Trainer(config, world, images, None, Display(is_shown=False), Guard())


def make_batch(scene: Scene) -> Batch:
    random = torch.Generator().manual_seed(0)
    rows_B = torch.randperm(scene.rows, generator=random)[: scene.batch]
    shape = (scene.batch, 3, scene.side, scene.side)
    return Batch(torch.randn(shape, generator=random), rows_B)


class PublishedMemory(torch.autograd.Function):
    """The 2019 program's non-parametric classifier: all similarities forward; backward the
    gradient in the features, and the new rows of the memory."""

    @staticmethod
    def forward(ctx: Any, features_BD: Tensor, rows_B: Tensor, memory_ND: Tensor) -> Tensor:
        ctx.save_for_backward(features_BD, rows_B)
        ctx.memory_ND = memory_ND
        return (features_BD @ memory_ND.T).div_(TEMPERATURE)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        features_BD, rows_B = ctx.saved_tensors
        memory_ND = ctx.memory_ND
        gradient_BD = gradients[0].div(TEMPERATURE) @ memory_ND
        new_BD = memory_ND[rows_B].mul_(0.5).add_(features_BD, alpha=0.5)
        memory_ND.index_copy_(0, rows_B, functional.normalize(new_BD, dim=1))
        return gradient_BD, None, None


def published_step(scene: Scene, config: Config) -> Callable[[Batch], Tensor]:
    """Its step in one process: DataParallel, softmax, the logarithm, SGD with momentum."""
    network = nn.DataParallel(build_encoder(config.encoder, config.seed))
    memory_ND = draw_uniform_rows(0, scene.rows, 128, config.seed)
    optimiser = torch.optim.SGD(
        network.parameters(), lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4
    )

    def step(batch: Batch) -> Tensor:
        logits_BN = PublishedMemory.apply(network(batch.images_BCHW), batch.rows_B, memory_ND)
        p_BN = logits_BN.softmax(dim=1)
        loss: Tensor = -p_BN.gather(1, batch.rows_B[:, None]).log().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step


def lightly_step(scene: Scene, config: Config) -> Callable[[Batch], Tensor]:
    """lightly's NTXentLoss with a memory bank of as many rows: its instance discrimination of two
    views, of which one comes from the network without gradients, as in its MoCo."""
    from lightly.loss import NTXentLoss

    network = build_encoder(config.encoder, config.seed)
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
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(scene, world, Path(folder))
        batch, config = make_batch(scene), trainer.config
        published = published_step(scene, config)
        ours, theirs = trainer.train_step(batch), published(batch)
        assert (ours - theirs).abs() < 1e-3, f"the losses differ: {ours}, {theirs}"
        cases: dict[str, Callable[[], object]] = {
            f"{scene.network}, ours": lambda: trainer.train_step(batch),
            f"{scene.network}, published form": lambda: published(batch),
        }
        if find_spec("lightly"):
            lightly = lightly_step(scene, config)
            cases[f"{scene.network}, lightly's memory bank"] = lambda: lightly(batch)
        benchmark.measure(cases, repeats, dict.fromkeys(cases, scene.batch), "images")
        for name, case in cases.items():
            benchmark.result(name).peak_mb = extra_peak_mb(case)
        mine = benchmark.result(f"{scene.network}, ours").min_s
        encoder_s = encoder_alone(benchmark, scene, trainer, batch, repeats)
    for name, key in (("published form", "published"), ("lightly's memory bank", "lightly")):
        if f"{scene.network}, {name}" in cases:
            theirs_s = benchmark.result(f"{scene.network}, {name}").min_s
            benchmark.ratios[f"{key}_{scene.network}"] = theirs_s / mine
    benchmark.ratios[f"floor_{scene.network}"] = mine / encoder_s


def encoder_alone(
    benchmark: Benchmark, scene: Scene, trainer: Trainer, batch: Batch, repeats: int
) -> float:
    """The floor of a step: the encoder's two passes and nothing else."""
    direction_BD = torch.randn(scene.batch, 128)
    name = f"{scene.network}, encoder alone"

    def both_passes() -> None:
        trainer.encoder(batch.images_BCHW).backward(direction_BD)
        trainer.encoder.zero_grad()

    benchmark.measure({name: both_passes}, repeats, {name: scene.batch}, "images")
    return benchmark.result(name).min_s


OPTIONS = {
    "as it is": (),
    "encoder.channels_last=false": ("encoder.channels_last=false",),
    "encoder.precision=bfloat16": ("encoder.precision=bfloat16",),
    "encoder.compile=true": ("encoder.compile=true",),
    "optim.fused=false": ("optim.fused=false",),
}


def measure_options(benchmark: Benchmark, scene: Scene, repeats: int, world: World) -> None:
    """Each alone, against all defaults; small banks, so that the network is seen."""
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
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--options", action="store_true", help="the settings of a step instead")
    given = parser.parse_args()
    benchmark = Benchmark("step options" if given.options else "step")
    with open_world("cpu", threads=os.cpu_count()) as world:
        if given.options:
            for scene in OPTION_SCENES[-1:] if given.smoke else OPTION_SCENES:
                measure_options(benchmark, scene, given.repeats, world)
        else:
            for scene in (SMOKE if given.smoke else SCENES).values():
                measure(benchmark, scene, given.repeats, world)
    if not given.options and not find_spec("lightly"):
        print("lightly is not installed: `pip install lightly` puts its memory bank beside ours")
    benchmark.finish(given.json)


if __name__ == "__main__":
    main()
