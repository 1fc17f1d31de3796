"""Build networks and trainers of any size on a pretend GPU whose tensors hold no values.

The tensors within those of the pretend GPU are fake ones, so shapes, types and lives are those of a
real step, autograd included, and code that looks at a value fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import Mock

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from and_dist.config.load import load_config
from and_dist.config.schema import Config, EncoderConfig
from and_dist.data.loader import Batch
from and_dist.distributed.stop_consensus import StopConsensus
from and_dist.distributed.watchdog import Watchdog
from and_dist.distributed.world import World
from and_dist.method.memory_bank import MemoryBank
from and_dist.models.encoders import build_encoder
from and_dist.objectives.base import ObjectiveContext, build_objective
from and_dist.training.choices import products_of
from and_dist.training.state import build_state
from and_dist.training.trainer import Trainer
from tests.pretend.device import pretend_gpu
from tests.pretend.tensors import CUDA, PretendGpu

SIDE = 224


@contextmanager
def hollow_gpu() -> Iterator[PretendGpu]:
    """Give this thread a pretend GPU whose tensors hold no values."""
    with FakeTensorMode(allow_non_fake_inputs=True), pretend_gpu() as gpu:
        yield gpu


def full_size_config(*overrides: str) -> Config:
    """Return a config of AlexNet in 16 bits with overrides; no images are read."""
    base = [
        "encoder.name=alexnet",
        "encoder.precision=bfloat16",
        "bank.dtype=bfloat16",
        "data.train=none",
        "data.test=null",
        f"data.image_size={SIDE}",
    ]
    return load_config([], [*base, *overrides])


def lone_world() -> World:
    """Return the world of a lone rank on the pretend GPU, in which nothing is sent."""
    group = dist.ProcessGroup(dist.HashStore(), 0, 1)
    return World(0, 1, 0, 1, CUDA, group, group)


def build_trainer(config: Config, num_rows: int, world: World) -> Trainer:
    """Build as much of a trainer as a step takes, as the only rank."""
    dtype = getattr(torch, config.bank.dtype)
    bank_SD = torch.ones(num_rows, config.encoder.feature_dim, device=CUDA, dtype=dtype)
    with CUDA:
        encoder = build_encoder(config.encoder, 0)
    trainer = Trainer.__new__(Trainer)
    trainer.config, trainer.world = config, world
    given = config.bank.update_rate, config.bank.renormalise, products_of(config)
    bank = MemoryBank(bank_SD, 0, num_rows, *given)
    images = Mock(side_effect=AssertionError("a step takes no pass over all images"))
    context = ObjectiveContext(config, trainer.world, bank, None, images, images)
    trainer.state = build_state(config.optim, encoder, bank, build_objective(context))
    trainer.components = SimpleNamespace(network=encoder)
    trainer.stop_consensus, trainer.watchdog = StopConsensus(), Watchdog()
    trainer.checkpoint_manager = SimpleNamespace(is_time_to_save=bool)
    return trainer


def build_batch(trainer: Trainer, count: int) -> Batch:
    """Return a batch of the trainer's type and image size, as the loader lays it out."""
    encoder, side = trainer.state.encoder, trainer.config.data.image_size
    images_BCHW = torch.ones(count, 3, side, side, device=CUDA, dtype=encoder.precision)
    rows_B = torch.empty(count, device=CUDA, dtype=torch.int64)
    return Batch(images_BCHW.to(memory_format=torch.channels_last), rows_B)


def take_a_step(trainer: Trainer, batch: Batch) -> None:
    """Do what Trainer.train_epoch does on the device in a step that does not log."""
    trainer.state.losses.add(trainer.train_step(batch), 0, len(batch.rows_B))


def most_held(name: str, precision: str, side: int, count: int) -> int:
    """Return the most bytes above weights and images while an encoder learns from a batch."""
    with hollow_gpu() as gpu:
        with CUDA:
            encoder = build_encoder(EncoderConfig(name=name, precision=precision), 0)
        images_BCHW = torch.empty(count, 3, side, side, device=CUDA, dtype=encoder.precision)
        images_BCHW = images_BCHW.to(memory_format=torch.channels_last)
        before = gpu.memory.bytes
        gpu.memory.forget_peak()
        encoder(images_BCHW).sum().backward()
        return gpu.memory.peak - before
