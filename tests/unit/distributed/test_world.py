from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import pytest
import torch.distributed as dist

from and_dist.distributed.launch_env import LaunchEnv
from and_dist.distributed.world import open_world, share_of_cores


def test_threads_are_a_share_of_the_cores_that_were_given() -> None:
    given = os.sched_getaffinity(0)
    assert share_of_cores(LaunchEnv()) == len(given)
    assert share_of_cores(LaunchEnv(local_size=2 * len(given))) == 1
    os.sched_setaffinity(0, {min(given)})
    try:
        assert share_of_cores(LaunchEnv()) == 1
    finally:
        os.sched_setaffinity(0, given)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the functions by which this process leaves its groups, as they are called."""
    called: list[str] = []

    def note(function: Callable[[], None]) -> None:
        called.append(function.__name__)
        function()

    aborts, leaves = dist.distributed_c10d._abort_process_group, dist.destroy_process_group
    monkeypatch.setattr(dist.distributed_c10d, aborts.__name__, partial(note, aborts))
    monkeypatch.setattr(dist, leaves.__name__, partial(note, leaves))
    return called


def test_a_rank_leaves_in_good_order_at_the_end(ways: list[str]) -> None:
    with open_world("cpu", threads=1):
        pass
    assert ways == ["destroy_process_group"]
    assert not dist.is_initialized()


@pytest.mark.parametrize("error", [ValueError("a wrong value"), SystemExit(1)])
def test_a_rank_that_raises_aborts_what_is_under_way(ways: list[str], error: BaseException) -> None:
    """To leave in good order would wait for ranks that may never come."""
    with pytest.raises(type(error)) as raised, open_world("cpu", threads=1):
        raise error
    assert raised.value is error
    assert ways == ["_abort_process_group"]
    assert not dist.is_initialized()
