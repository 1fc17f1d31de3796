"""Watch a training step and the partition at full size, on fake CUDA tensors."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock, patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from and_dist.config.load import load_config
from and_dist.data.loader import Batch
from and_dist.distributed.stop_consensus import StopConsensus
from and_dist.distributed.watchdog import Watchdog
from and_dist.distributed.world import World
from and_dist.method.memory_bank import MemoryBank
from and_dist.method.partition import log_partition
from and_dist.models.encoders import build_encoder
from and_dist.objectives.base import ObjectiveContext, build_objective
from and_dist.training.state import build_state
from and_dist.training.trainer import Trainer
from tests.pretend.fake_tensors import Watch, backward_without_an_engine, fake_gpu
from tests.pretend.records import Record
from tests.pretend.tensors import CUDA

BATCH, IMAGENET = 256, 1_281_167


def build_trainer(encoder_name: str) -> Trainer:
    """Build as much of a trainer as a step takes, with a bank of ImageNet's size."""
    config = load_config(
        [],
        [
            f"encoder.name={encoder_name}",
            "encoder.precision=bfloat16",
            "bank.dtype=bfloat16",
            "data.train=none",
            "data.test=null",
        ],
    )
    group = dist.ProcessGroup(0, 1)
    dim = config.encoder.feature_dim
    bank_SD = torch.empty(IMAGENET, dim, device=CUDA, dtype=torch.bfloat16)
    with CUDA:
        encoder = build_encoder(config.encoder, 0)
    trainer = Trainer.__new__(Trainer)
    trainer.config = config
    trainer.world = World(0, 1, 0, 1, CUDA, group, group)
    bank = MemoryBank(bank_SD, 0, IMAGENET, config.bank.update_rate)
    images = Mock(side_effect=AssertionError("a step takes no pass over all images"))
    context = ObjectiveContext(config, trainer.world, bank, None, images, images)
    trainer.state = build_state(config.optim, encoder, bank, build_objective(context))
    trainer.components = SimpleNamespace(network=encoder)
    trainer.stop_consensus, trainer.watchdog = StopConsensus(), Watchdog()
    trainer.checkpoint_manager = SimpleNamespace(is_time_to_save=bool)
    return trainer


def take_a_step(trainer: Trainer, images_BCHW: Tensor, rows_B: Tensor) -> None:
    """Do what Trainer.train_epoch does on the device in a step that does not log."""
    loss = trainer.train_step(Batch(images_BCHW, rows_B))
    trainer.state.losses.add(loss, 0, BATCH)


def watch_second_step(encoder_name: str) -> Record:
    """Return what the second step does; the agreement on requests looks at the step before."""
    with fake_gpu():
        trainer = build_trainer(encoder_name)
        images_BCHW = torch.empty(BATCH, 3, 224, 224, device=CUDA, dtype=torch.bfloat16)
        images_BCHW = images_BCHW.to(memory_format=torch.channels_last)
        rows_B = torch.empty(BATCH, device=CUDA, dtype=torch.int64)
        backward = backward_without_an_engine(list(trainer.components.network.parameters()))
        with patch.object(Tensor, "backward", backward):
            for _ in range(2):
                with Watch() as watch:
                    take_a_step(trainer, images_BCHW, rows_B)
    return watch.record


@pytest.mark.parametrize(("encoder_name", "most_launches"), [("alexnet", 180), ("resnet18", 250)])
def test_a_step_that_does_not_log_never_makes_the_host_wait(
    encoder_name: str, most_launches: int
) -> None:
    """Its one copy to the host, of what ranks were asked to do, is not waited for either.

    Measured without the backward pass: 176 launches of AlexNet, 245 of ResNet18.
    """
    record = watch_second_step(encoder_name)
    assert not record.host_waits()
    assert record.launches["_scaled_dot_product_flash_attention"] == 2
    assert record.launches.total() <= most_launches
    (copy,) = record.background_copies
    assert copy.startswith("copy_ and_dist/")


@pytest.mark.parametrize(
    ("dtype", "operator"),
    [
        (torch.bfloat16, "_scaled_dot_product_flash_attention"),
        (torch.float16, "_scaled_dot_product_flash_attention"),
        (torch.float32, "_scaled_dot_product_efficient_attention"),
    ],
)
def test_the_partition_over_ten_million_rows_is_two_attentions(
    dtype: torch.dtype, operator: str
) -> None:
    """Over heads of equal length, and over the rows that are left."""
    with fake_gpu():
        queries_GD = torch.empty(4096, 128, device=CUDA)
        rows_SD = torch.empty(10_000_019, 128, device=CUDA, dtype=dtype)
        with Watch() as watch:
            partition = log_partition(queries_GD, rows_SD, 0.1)
    assert (partition.log_z.shape, partition.mean.shape) == ((4096,), (4096, 128))
    assert partition.log_z.dtype == partition.mean.dtype == torch.float32
    assert partition.log_z.device == partition.mean.device == CUDA
    assert watch.record.launches[operator] == 2
    assert watch.record.launches.total() < 30
    assert not watch.record.host_waits()


@pytest.mark.nightly
def test_the_partition_of_float64_rows_never_makes_the_host_wait() -> None:
    with fake_gpu():
        queries_GD = torch.empty(4096, 128, device=CUDA, dtype=torch.float64)
        rows_SD = torch.empty(IMAGENET, 128, device=CUDA, dtype=torch.float64)
        with Watch() as watch:
            partition = log_partition(queries_GD, rows_SD, 0.1)
    assert partition.log_z.dtype == partition.mean.dtype == torch.float64
    assert not watch.record.host_waits()


def test_a_value_of_a_fake_tensor_cannot_be_looked_at() -> None:
    """A step in which the host waits for a value cannot pass the tests above."""
    with fake_gpu(), pytest.raises(Exception, match="_local_scalar_dense"):
        torch.empty(3, device=CUDA).sum().item()


def test_the_watch_counts_copies_and_launches() -> None:
    with fake_gpu(), Watch() as watch:
        values_X = torch.empty(3).to(CUDA)
        values_X.view(3, 1).add_(1)
        torch.empty(3).copy_(values_X, non_blocking=True)
    assert sum(watch.record.blocking_copies.values()) == 1
    assert sum(watch.record.background_copies.values()) == 1
    assert watch.record.launches == {"_to_copy": 1, "add_": 1, "copy_": 1}
