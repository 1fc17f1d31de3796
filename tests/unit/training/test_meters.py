"""The speed of a few steps, whenever it is asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from and_dist.training.meters import StepClock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A time that stands still unless a test moves it."""
    at = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: at[0])
    return at


def test_a_pace_is_that_of_its_lap_though_it_is_read_later(now: list[float]) -> None:
    clock = StepClock(torch.device("cpu"))
    for at, _ in enumerate(clock.waiting_for(range(8))):
        clock.count(10)
        now[0] += 2.0
        if at == 3:
            clock.lap()
        if at == 4:
            assert clock.pace().images_per_s == pytest.approx(5.0)
    clock.lap()
    pace = clock.pace()
    assert (pace.images_per_s, pace.data_wait) == (pytest.approx(5.0), 0.0)


def test_the_share_of_waiting_is_at_most_1(now: list[float]) -> None:
    def slow_batches() -> Iterator[int]:
        for at in range(3):
            now[0] += 3.0
            yield at

    clock = StepClock(torch.device("cpu"))
    for _ in clock.waiting_for(slow_batches()):
        clock.count(10)
        now[0] += 1.0
        clock.lap()
        assert clock.pace() == (pytest.approx(2.5), pytest.approx(0.75))
