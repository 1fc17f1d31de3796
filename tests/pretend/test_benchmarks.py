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

from benchmarks.common import rates
from tests.pretend.device import pretend_gpu

pytestmark = pytest.mark.nightly

SMALL_SIDE = 256
"""The side of the matrices that measure the machine's rates; a GPU's are too large for a CPU."""


def compile_nothing(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
    """Stand in for torch.compile, which would write kernels for a GPU."""
    return function


@pytest.mark.parametrize("name", ["device.gpu", "discovery", "hardware", "partition"])
def test_a_benchmark_runs_the_way_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    file = tmp_path / "figures.json"
    arguments = ["--smoke", "--repeats", "1", "--json", str(file)]
    if name == "device.gpu":
        monkeypatch.setattr(module, "BATCH", 2)
        monkeypatch.setattr(module, "MANY", 8)
    else:
        arguments += ["--device", "cuda"]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setattr(rates, "GPU_SIDE", SMALL_SIDE)
    monkeypatch.setattr(torch, "compile", compile_nothing)
    with pretend_gpu() as gpu:
        module.main()
    assert json.loads(file.read_text())
    assert gpu.launches
