"""Find out whether torch and DALI are built for a CUDA that a node's driver knows."""

from __future__ import annotations

import ctypes
import importlib
from importlib import metadata
from typing import NamedTuple

PAIRS = {13: "cuda13", 12: "cuda12"}
"""CUDA's major versions that torch and DALI are built for -> the extra that installs such a pair,
the newest first."""
DALI = "nvidia-dali-cuda"
"""The beginning of the names of DALI's packages, such as nvidia-dali-cuda130."""


class Builds(NamedTuple):
    """Hold versions of CUDA as (major, minor): what the driver knows, and what packages need."""

    driver: tuple[int, int] | None
    torch: tuple[int, int] | None
    dali: tuple[int, int] | None


def find_builds() -> Builds:
    """Return the versions on this node, None for each that is not there."""
    return Builds(_of_driver(), _of_torch(), _of_dali())


def describe_mismatch(builds: Builds) -> str:
    """Return a sentence on builds that do not fit, with the extra that would; "" where they do."""
    if builds.torch is None:
        return ""
    if builds.driver is not None and builds.driver[0] < builds.torch[0]:
        extra = next((name for major, name in PAIRS.items() if major <= builds.driver[0]), None)
        way_out = f"pip install 'and-dist[{extra}]'" if extra else "the driver has to be updated"
        return (
            f"has a driver for CUDA {_text(builds.driver)}, and torch is built for "
            f"{_text(builds.torch)}: {way_out}"
        )
    if builds.dali is not None and builds.dali[0] != builds.torch[0]:
        extra = PAIRS.get(builds.torch[0])
        way_out = f": pip install 'and-dist[{extra}]'" if extra else ""
        return (
            f"has torch built for CUDA {_text(builds.torch)} and DALI for "
            f"{_text(builds.dali)}{way_out}"
        )
    return ""


def _of_driver() -> tuple[int, int] | None:
    """Return the newest CUDA that the driver knows."""
    version = ctypes.c_int()
    try:
        library = ctypes.CDLL("libcuda.so.1")
        if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def _of_torch() -> tuple[int, int] | None:
    """Return the CUDA that torch is built for."""
    try:
        built_for = importlib.import_module("torch").version.cuda
    except ImportError:
        return None
    if built_for is None:
        return None
    major, minor = str(built_for).split(".")[:2]
    return int(major), int(minor)


def _of_dali() -> tuple[int, int] | None:
    """Return the CUDA that DALI is built for, by the name of its package: cuda130 is 13.0."""
    names = (found.metadata["Name"] or "" for found in metadata.distributions())
    digits = next((name.removeprefix(DALI) for name in names if name.startswith(DALI)), "")
    return (int(digits[:-1]), int(digits[-1])) if digits.isdigit() else None


def _text(version: tuple[int, int]) -> str:
    """Return a version as people write it."""
    return f"{version[0]}.{version[1]}"
