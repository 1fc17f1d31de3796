"""Name the extra that fits a node's driver, from versions that are made up here."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launcher.node import cuda_pairs
from launcher.node.cuda_pairs import Builds, describe_mismatch, find_builds


@pytest.mark.parametrize(
    ("builds", "said"),
    [
        (Builds((13, 0), (13, 2), (13, 0)), ""),
        (Builds((13, 2), (12, 8), (12, 0)), ""),  # a newer driver runs what is older
        (Builds(None, (13, 2), (13, 0)), ""),
        (Builds((12, 4), None, (13, 0)), ""),
        (
            Builds((12, 4), (13, 0), (13, 0)),
            "has a driver for CUDA 12.4, and torch is built for 13.0: "
            "pip install 'and-dist[cuda12]'",
        ),
        (
            Builds((11, 8), (13, 0), (13, 0)),
            "has a driver for CUDA 11.8, and torch is built for 13.0: the driver has to be updated",
        ),
        (
            Builds((13, 0), (12, 8), (13, 0)),
            "has torch built for CUDA 12.8 and DALI for 13.0: pip install 'and-dist[cuda12]'",
        ),
    ],
)
def test_the_pair_that_fits_is_named(builds: Builds, said: str) -> None:
    assert describe_mismatch(builds) == said


def test_builds_are_those_of_the_packages_that_are_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(name: str) -> Any:
        assert name == "libcuda.so.1"

        def version(found: Any) -> int:
            found._obj.value = 12040
            return 0

        return SimpleNamespace(cuDriverGetVersion=version)

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    names = ["numpy", "nvidia-dali-cuda120"]
    installed = [SimpleNamespace(metadata={"Name": name}) for name in names]
    monkeypatch.setattr(cuda_pairs.metadata, "distributions", lambda: installed)
    assert find_builds() == Builds((12, 4), (13, 2), (12, 0))


def test_a_machine_without_a_driver_or_cuda_in_torch_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(_: str) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert find_builds()[:2] == (None, None)
