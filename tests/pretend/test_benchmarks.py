"""Run the benchmarks with --device cuda, small, to their end on the pretend GPU."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import discovery, partition
from benchmarks.common import rates
from tests.pretend.device import pretend_gpu
from tests.pretend.tensors import CUDA

pytestmark = pytest.mark.nightly

SMALL_SIDE = 256
"""The side of the matrices that measure the machine's rates; a GPU's are too large for a CPU."""


def compile_nothing(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
    """Stand in for torch.compile, which would write kernels for a GPU."""
    return function


ON_GPUS_ALONE = ("device.gpu", "device.partition_times")


@pytest.mark.parametrize("name", [*ON_GPUS_ALONE, "discovery", "hardware", "partition"])
def test_a_benchmark_runs_the_way_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    file = tmp_path / "figures.json"
    arguments = ["--smoke", "--json", str(file)]
    if name != "device.partition_times":
        arguments += ["--repeats", "1"]
    if name not in ON_GPUS_ALONE:
        arguments += ["--device", "cuda"]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setattr(rates, "GPU_SIDE", SMALL_SIDE)
    monkeypatch.setattr(torch, "compile", compile_nothing)
    with pretend_gpu() as gpu:
        module.main()
    assert json.loads(file.read_text())
    assert gpu.launches


def test_discovery_of_imagenet_takes_drawn_rows_and_one_run_of_each_form(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A machine with a GPU has no demo run whose features could be taken, and little time."""
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["discovery", "--device", "cuda", "--json", str(file)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(discovery, "SIZES_ON_GPU", (1000, 2000))
    monkeypatch.setattr(discovery, "IMAGENET", 4001)
    monkeypatch.setattr(discovery, "ROWS_SEARCHED", 500)
    monkeypatch.setattr(rates, "GPU_SIDE", SMALL_SIDE)
    with pretend_gpu():
        discovery.main()
    results = {result["name"]: result for result in json.loads(file.read_text())["results"]}
    for name, work in (("fused, 4k", 4001), ("Flat search for 500 rows, 4k", 500)):
        assert (len(results[name]["seconds"]), results[name]["work"]) == (1, work)


def test_rows_are_drawn_on_the_gpu() -> None:
    with pretend_gpu() as gpu:
        assert discovery.build_features(None, False, 100, CUDA).device == CUDA
    (copy,) = gpu.blocking_copies.elements()  # of ten centres
    assert copy.startswith("_to_copy benchmarks/common/features.py")


def test_the_floor_of_the_partition_is_two_products_a_million_rows() -> None:
    features_BD, bank_ND = torch.rand(2, 8), torch.rand(2**20 + 5, 8)
    with pretend_gpu() as gpu:
        partition.two_products(features_BD.to(CUDA), bank_ND.to(CUDA))
    assert gpu.launches["mm"] == gpu.launches["addmm_"] == 2
