"""See which products round to TF32 on the pretend GPU, and which operators repeat to the bit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from and_dist.config.schema import EncoderConfig
from and_dist.data.loader import Batch
from and_dist.distributed.watchdog import Watchdog
from and_dist.distributed.world import open_world
from and_dist.models.arithmetic import CUBLAS_WORKSPACE, repeatable_sums
from and_dist.models.encoders import build_encoder
from and_dist.training.session import run_training
from and_dist.training.trainer import Trainer
from tests.conftest import Cli
from tests.pictures import save_pictures
from tests.pretend.device import pretend_gpu
from tests.pretend.runs import SHORT, config_for, train_on
from tests.pretend.tensors import CUDA
from tests.ranks.runs import losses_of

EXACT, TF32 = 1e-5, 1e-2
"""Bounds on losses that were computed in float32 and in TF32; measured 1e-6, and 1e-4 to 1e-3."""


def train_on_rounding_gpu(root: Path, *overrides: str) -> Path:
    """Train a run on a GPU whose convolutions round to TF32 where torch lets them."""
    config = config_for("cuda", root, *overrides)
    with pretend_gpu(rounds_to_tf32=True), Watchdog() as watchdog:
        run_training(config, watchdog, "quiet")
    return config.folder


def start_of(run: Path) -> dict[str, Any]:
    """Return the record of a run's only start."""
    (start,) = json.loads((run / "environment.json").read_text())
    return dict(start)


@pytest.mark.parametrize(
    ("is_allowed", "convolutions"), [(True, "TF32"), (False, "float32")], ids=["tf32", "float32"]
)
def test_training_rounds_to_tf32_where_the_config_says_so(
    tmp_path: Path, is_allowed: bool, convolutions: str
) -> None:
    on_cpu = train_on("cpu", tmp_path, *SHORT)
    on_gpu = train_on_rounding_gpu(tmp_path, *SHORT, f"encoder.tf32={is_allowed}".lower())
    apart = float((losses_of(on_gpu) - losses_of(on_cpu)).abs().max())
    assert (EXACT < apart < TF32) if is_allowed else apart < EXACT
    assert start_of(on_gpu)["convolutions"] == convolutions
    assert start_of(on_cpu)["convolutions"] == "float32"


@pytest.mark.thorough
def test_clusters_are_those_of_a_cpu_where_nothing_rounds(tmp_path: Path) -> None:
    """k-means tips over at roundings: with TF32 losses are a hundred times as far apart."""
    options = (*SHORT, "curriculum.epochs=3", "method=deepcluster", "deepcluster.clusters=12")
    on_cpu = train_on("cpu", tmp_path, *options)
    on_gpu = train_on_rounding_gpu(tmp_path, *options, "encoder.tf32=false")
    rounded = train_on_rounding_gpu(tmp_path / "rounded", *options)
    exact, tipped = (losses_of(run) - losses_of(on_cpu) for run in (on_gpu, rounded))
    assert exact.abs().max() < EXACT
    assert tipped.abs().max() > 100 * EXACT


def test_features_are_those_of_float32(tmp_path: Path, cli: Cli) -> None:
    """A GPU that would round to TF32 computes the very features of a CPU."""
    run = train_on("cpu", tmp_path, *SHORT, "run.device=auto")
    pictures = save_pictures(tmp_path / "pictures", [(40, 50), (60, 44), (32, 32)])
    files = [tmp_path / "cpu.npy", tmp_path / "cuda.npy"]
    for file, device in zip(files, (nullcontext(), pretend_gpu(rounds_to_tf32=True)), strict=True):
        with device as gpu:
            status, _, errors = cli("embed", run, pictures, "--out", file)
        assert status == 0, errors
    assert gpu is not None
    assert gpu.launches["convolution"]
    on_cpu, on_gpu = map(np.load, files)
    np.testing.assert_array_equal(on_gpu, on_cpu)


def test_a_world_gives_back_what_was_allowed_before() -> None:
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    products.allow_tf32 = True
    try:
        with pretend_gpu(), open_world("cuda", threads=1):
            assert not convolutions.allow_tf32
            assert not products.allow_tf32
        assert convolutions.allow_tf32
        assert products.allow_tf32
    finally:
        products.allow_tf32 = False


def settings() -> tuple[bool, ...]:
    """Return all settings that a deterministic run changes."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
    )


def test_a_deterministic_run_uses_kernels_that_repeat_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, value = CUBLAS_WORKSPACE
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before, during, train_step = settings(), set(), Trainer.train_step

    def noted_step(self: Trainer, batch: Batch) -> Tensor:
        during.add((*settings(), os.environ.get(name)))
        return train_step(self, batch)

    with patch.object(Trainer, "train_step", noted_step):
        plain = train_on("cuda", tmp_path / "plain", *SHORT)
        assert during == {(*before, None)}
        during.clear()
        repeatable = train_on("cuda", tmp_path / "other", *SHORT, "encoder.deterministic=true")
    assert during == {(True, True, False, False, value)}
    assert settings() == before
    assert torch.equal(losses_of(repeatable), losses_of(plain))
    assert not start_of(plain)["deterministic"]
    assert start_of(repeatable)["deterministic"]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "side"), [("alexnet", 224), ("torchvision_alexnet", 224), ("resnet18", 64)]
)
def test_encoders_have_a_backward_pass_that_repeats_to_the_bit(name: str, side: int) -> None:
    encoder = build_encoder(EncoderConfig(name=name), 0)
    with pretend_gpu():
        encoder.to(CUDA)
        with repeatable_sums(CUDA, is_wanted=True):
            encoder(torch.randn(2, 3, side, side).to(CUDA)).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize(
    "compute",
    [
        lambda images: nn.AdaptiveAvgPool2d(2)(images).sum().backward(),
        lambda images: functional.interpolate(images, size=9, mode="bilinear").sum().backward(),
        lambda images: torch.histc(images.detach()),
        lambda images: images.detach().flatten().median(dim=0),
    ],
    ids=["adaptive pooling", "interpolation", "histogram", "median"],
)
def test_the_pretend_gpu_refuses_what_does_not_repeat(compute: Callable[[Tensor], Any]) -> None:
    with pretend_gpu():
        images_BCHW = torch.randn(2, 3, 6, 6, device=CUDA).requires_grad_()
        compute(images_BCHW)
        with repeatable_sums(CUDA, True), pytest.raises(RuntimeError, match="deterministic impl"):
            compute(images_BCHW)
