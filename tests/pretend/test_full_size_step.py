"""Take a training step at full size on a hollow GPU, and count its launches and waits."""

from __future__ import annotations

import pytest
import torch

from and_dist.method.partition import log_partition
from tests.pretend.full_size import (
    build_batch,
    build_trainer,
    full_size_config,
    hollow_gpu,
    lone_world,
    take_a_step,
)
from tests.pretend.records import Record
from tests.pretend.tensors import CUDA

BATCH, IMAGENET = 256, 1_281_167


def watch_second_step(encoder_name: str) -> Record:
    """Return what the second step does; the agreement on requests looks at the step before."""
    config = full_size_config(f"encoder.name={encoder_name}")
    with hollow_gpu() as gpu:
        trainer = build_trainer(config, IMAGENET, lone_world())
        batch = build_batch(trainer, BATCH)
        for _ in range(2):
            gpu.forget_counts()
            take_a_step(trainer, batch)
    return gpu


@pytest.mark.parametrize(("encoder_name", "most_launches"), [("alexnet", 230), ("resnet18", 380)])
def test_a_step_that_does_not_log_never_makes_the_host_wait(
    encoder_name: str, most_launches: int
) -> None:
    """Its one copy to the host, of what ranks were asked to do, is not waited for either.

    Measured with the backward pass: 221 operators of AlexNet, 370 of ResNet18.
    """
    record = watch_second_step(encoder_name)
    assert not record.host_waits()
    assert record.launches["_scaled_dot_product_flash_attention"] == 1
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
def test_the_partition_over_ten_million_rows_is_one_attention(
    dtype: torch.dtype, operator: str
) -> None:
    """Over heads of equal length; the few rows that are left take a product."""
    with hollow_gpu() as gpu:
        queries_GD = torch.empty(4096, 128, device=CUDA)
        rows_SD = torch.empty(10_000_019, 128, device=CUDA, dtype=dtype)
        before = gpu.memory.bytes
        gpu.memory.forget_peak()
        partition = log_partition(queries_GD, rows_SD, 0.1)
        assert (partition.log_z.shape, partition.mean.shape) == ((4096,), (4096, 128))
        assert partition.log_z.dtype == partition.mean.dtype == torch.float32
        assert partition.log_z.device == partition.mean.device == CUDA
    assert gpu.launches[operator] == 1
    assert gpu.launches.total() <= 15
    assert not gpu.host_waits()
    assert gpu.memory.peak - before < 200e6, "nothing grows with the rows"


@pytest.mark.nightly
def test_the_partition_of_float64_rows_never_makes_the_host_wait() -> None:
    with hollow_gpu() as gpu:
        queries_GD = torch.empty(4096, 128, device=CUDA, dtype=torch.float64)
        rows_SD = torch.empty(IMAGENET, 128, device=CUDA, dtype=torch.float64)
        partition = log_partition(queries_GD, rows_SD, 0.1)
        assert partition.log_z.dtype == partition.mean.dtype == torch.float64
    assert not gpu.host_waits()


def test_a_value_of_a_hollow_tensor_cannot_be_looked_at() -> None:
    """A step in which the host waits for a value cannot pass the tests above."""
    with hollow_gpu(), pytest.raises(Exception, match="_local_scalar_dense"):
        torch.empty(3, device=CUDA).sum().item()
