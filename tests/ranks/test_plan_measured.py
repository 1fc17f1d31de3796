"""What `and-dist plan` predicts, beside what real ranks take on this machine."""

from __future__ import annotations

import pytest

from benchmarks.common.rank_pool import RankPool
from benchmarks.plan import HELD, TIMED, WORLDS, Looks, compare_memory

LOOKS = 5
pytestmark = [pytest.mark.nightly, pytest.mark.whole_run]


def test_memory_is_predicted_within_a_tenth() -> None:
    compared = compare_memory(HELD, WORLDS)
    wrong = {at: memory for at, memory in compared.items() if abs(memory.error) > 0.1}
    assert not wrong
    assert len(compared) == 2 * len(HELD) * len(WORLDS)


def test_a_step_is_predicted_within_a_quarter(ranks: RankPool) -> None:
    """The machine is measured between the steps; the least of all looks counts."""
    looks, disturbances = Looks(TIMED, WORLDS), []
    for _ in range(LOOKS):
        looks.look(ranks)
        disturbances.append(looks.disturbed)
        compared = looks.compare()
        wrong = {at: step for at, step in compared.items() if abs(step.error) > 0.25}
        if not wrong:
            assert len(compared) == len(TIMED) * len(WORLDS)
            return
    busy = f"others took at least {min(disturbances):.0%} of the cores while steps were timed"
    raise AssertionError(f"not as predicted: {wrong}; {busy}")
