"""What steps of several ranks say of their waiting."""

from __future__ import annotations

import pytest

from benchmarks import plan
from benchmarks.plan import TOGETHER, job_of, step_seconds, waits_of
from tests.unit.planning.slide_rule import device

CORES = 2
SIZES = (CORES, 2 * CORES)


@pytest.fixture(autouse=True)
def _cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan for a machine of two cores, whatever this one has."""
    monkeypatch.setattr(plan, "num_cores", lambda: CORES)


def test_what_ranks_wait_is_found_again_in_their_steps() -> None:
    known = device(cores=CORES)
    waiting = known.model_copy(update={"waits": 0.5, "turns": 0.25})
    steps = {ranks: step_seconds(job_of(TOGETHER, ranks, waiting, 1)) for ranks in SIZES}
    found = waits_of(known, steps)
    assert found == pytest.approx({"waits": 0.5, "turns": 0.25}, rel=1e-2)


def test_ranks_that_are_faster_than_predicted_wait_for_nothing() -> None:
    known = device(cores=CORES)
    steps = {ranks: 0.5 * step_seconds(job_of(TOGETHER, ranks, known, 1)) for ranks in SIZES}
    assert set(waits_of(known, steps).values()) == {0.0}
