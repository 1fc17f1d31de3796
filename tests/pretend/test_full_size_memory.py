"""Count the memory of a step at full size on a hollow GPU, and compare it with the plan."""

from __future__ import annotations

import pytest
import torch

from and_dist.config.schema import EncoderConfig
from and_dist.planning.costs import COSTS, cost_of
from and_dist.planning.gpus import GPUS
from and_dist.planning.memory import Footprint, footprint_of
from and_dist.planning.workload import Job, Size
from tests.pretend.full_size import (
    build_batch,
    build_trainer,
    full_size_config,
    hollow_gpu,
    lone_world,
    most_held,
    take_a_step,
)
from tests.pretend.tensors import CUDA

ROWS, QUERIES = 10_000_000, 4096
NOT_OF_TORCH = ("framework", "faiss's scratch", "images in flight")
"""Parts of a plan that no tensor of a step holds: DALI's images, and other libraries."""
QUICK = ("tiny", "alexnet")


def planned_step(footprint: Footprint) -> float:
    """Return the bytes that torch's tensors take in a step."""
    parts = footprint.parts(footprint.phase("training"))
    return sum(part.bytes for part in parts if part.name not in NOT_OF_TORCH)


@pytest.mark.parametrize(
    ("name", "batch", "dtype"),
    [
        ("alexnet", QUERIES, "bfloat16"),
        ("alexnet", 256, "float32"),
        pytest.param("resnet18", QUERIES, "bfloat16", marks=pytest.mark.nightly),
        pytest.param("resnet50", 256, "float32", marks=pytest.mark.nightly),
    ],
)
def test_a_step_over_ten_million_rows_takes_the_memory_of_the_plan(
    name: str, batch: int, dtype: str
) -> None:
    config = full_size_config(
        f"encoder.name={name}",
        f"encoder.precision={dtype}",
        f"bank.dtype={dtype}",
        f"bank.products={'float16' if dtype == 'float32' else 'stored'}",
        f"optim.batch_size={batch}",
    )
    with hollow_gpu() as gpu:
        trainer, before = build_trainer(config, ROWS, lone_world()), gpu.memory.bytes
        of_batch = build_batch(trainer, batch)
        images = gpu.memory.bytes - before
        take_a_step(trainer, of_batch)
        gpu.memory.forget_peak()
        take_a_step(trainer, of_batch)
        taken = gpu.memory.peak - images
    planned = planned_step(footprint_of(Job(config, ROWS, Size(1, 1), GPUS["h100"])))
    assert planned == pytest.approx(taken, rel=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.nightly) for n in sorted(COSTS)],
)
def test_an_image_holds_as_much_as_its_cost_says(name: str, precision: str) -> None:
    """In large batches; in small ones the gradients of weights are the larger part."""
    side = COSTS[name].side
    few, many = (most_held(name, precision, side, count) for count in (512, 1024))
    held = cost_of(EncoderConfig(name=name), side).held_bytes(precision, side)
    assert (many - few) / 512 == pytest.approx(held, rel=0.01)
    assert cost_of(EncoderConfig(name=name), side).held_bytes(precision, 2 * side) == 4 * held


def test_memory_is_counted_from_the_first_use_of_a_tensor_to_its_end() -> None:
    with hollow_gpu() as gpu:
        first = torch.empty(1000, device=CUDA)
        assert gpu.memory.bytes == gpu.memory.peak == 4000
        view = first[:10]
        assert gpu.memory.bytes == 4000
        second = first + 1
        assert gpu.memory.bytes == 8000
        del first, second
        assert (gpu.memory.bytes, gpu.memory.peak) == (4000, 8000)
        del view
        assert gpu.memory.bytes == 0
        gpu.memory.forget_peak()
        assert gpu.memory.peak == 0


def test_what_autograd_keeps_is_counted() -> None:
    with hollow_gpu() as gpu:
        weight = torch.empty(100, 100, device=CUDA, requires_grad=True)
        before = gpu.memory.bytes
        result = (weight.exp() * 2).sum()
        assert gpu.memory.bytes == before + 40_000 + 4
        result.backward()
        del result
        assert gpu.memory.bytes == before + 40_000, "the gradient"
