"""Send everything through the process groups in a world of one rank, which takes no short cut.

What a backend refuses, it refuses there too. Here it is gloo; tests/gpu does the same by NCCL.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from and_dist.distributed import collectives
from and_dist.distributed.world import open_world
from benchmarks.device.world_of_one import (
    MOST_APART,
    RUNS,
    CommunicatingSize,
    check_collectives,
    compare_run,
    sample_tensors,
    without_short_cuts,
)

OF_ALL_RANKS = ("all_gather_into_tensor", "all_to_all_single", "all_reduce", "gather", "broadcast")
"""The collectives of torch that and_dist.distributed.collectives calls."""


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the names of the collectives of torch that are called, as they are."""
    names: set[str] = set()

    def note(function: Callable[..., Any], *tensors: Any, **options: Any) -> Any:
        names.add(function.__name__)
        return function(*tensors, **options)

    for name in OF_ALL_RANKS:
        monkeypatch.setattr(dist, name, partial(note, getattr(dist, name)))
    return names


def test_every_collective_takes_seven_kinds_of_tensor(called: set[str]) -> None:
    kinds = sample_tensors(torch.device("cpu"))
    assert len(kinds) == 7
    with without_short_cuts(), open_world("cpu", threads=1) as world:
        check_collectives(world)
    assert called == set(OF_ALL_RANKS)


def test_a_wrong_collective_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack_wrong(*_: Any) -> list[Tensor]:
        return [torch.ones(4, 3)] * 7

    monkeypatch.setattr(collectives, "_unpack", unpack_wrong)
    with (
        without_short_cuts(),
        open_world("cpu", threads=1) as world,
        pytest.raises(AssertionError, match="tensor"),
    ):
        check_collectives(world)


def test_a_size_that_denies_being_one_counts_as_one() -> None:
    size = CommunicatingSize(1)
    assert size != 1
    assert size > 1
    assert not operator.eq(size, 1)
    assert (3 * size, 7 // size, list(range(size)), size - 1) == (3, 7, [0], 0)


@pytest.mark.parametrize(
    "name", [n if n == "plain" else pytest.param(n, marks=pytest.mark.nightly) for n in RUNS]
)
def test_runs_through_ddp_and_its_hooks_lose_what_lone_ones_do(name: str, tmp_path: Path) -> None:
    assert compare_run(name, "cpu", tmp_path) < MOST_APART
