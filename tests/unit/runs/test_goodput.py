"""The time of a run is divided between training that counts and the causes of the rest."""

from __future__ import annotations

import pytest

from and_dist.runs.goodput import Tally, goodput


def start(began: float, loaded: float, **more: float) -> dict[str, float]:
    return {"began": began, "loaded": loaded, **more}


def at(time: float, event: str = "step", **more: float) -> dict[str, object]:
    return {"event": event, "time": time, **more}


def test_an_undisturbed_run_loses_the_time_to_load_to_save_and_to_discover() -> None:
    records = [
        at(120.0),
        at(130.0, "discovery", seconds=5.0),
        at(150.0, "checkpoint", seconds=9.0, waited_seconds=0.5),
        at(200.0, "checkpoint", seconds=9.0, waited_seconds=1.5),
    ]
    found = goodput([start(100.0, 110.0)], Tally(records))
    assert found is not None
    assert found.seconds == 100.0
    assert found.lost == {"load": 10.0, "save": 2.0, "discovery": 5.0}
    assert found.share == pytest.approx(0.83)
    said = "83.0 % of 1:40, lost to load 10.0 s, discovery 5.0 s, save 2.0 s"
    assert found.describe() == said


def test_an_interruption_is_divided_by_who_noticed_it_and_when() -> None:
    """Killed at 160, noticed at 163; the next job begins at 190, its ranks at 192."""
    starts = [
        start(100.0, 110.0),
        start(192.0, 200.0, job_began=190.0, silent_since=160.0, seconds_again=12.0),
    ]
    found = goodput(starts, Tally([at(300.0)]), decided=[163.0])
    assert found is not None
    assert found.lost == {
        "detection": 3.0,
        "queue": 27.0,
        "restart": 2.0,
        "load": 18.0,
        "steps_again": 12.0,
    }
    assert found.share == pytest.approx(1 - 62 / 200)


def test_where_nobody_decides_all_of_the_gap_is_the_restart() -> None:
    starts = [start(100.0, 110.0), start(170.0, 175.0, silent_since=160.0)]
    found = goodput(starts, Tally([at(200.0)]), decided=[90.0, 195.0])
    assert found is not None
    assert found.lost == {"load": 15.0, "restart": 10.0}


def test_a_start_that_was_killed_before_it_had_loaded_belongs_to_the_gap() -> None:
    starts = [
        start(100.0, 110.0),
        {"began": 130.0},
        start(150.0, 155.0, silent_since=120.0),
    ]
    found = goodput(starts, Tally([at(200.0)]))
    assert found is not None
    assert found.lost == {"load": 15.0, "restart": 30.0}


def test_starts_of_earlier_revisions_have_no_goodput() -> None:
    assert goodput([], Tally()) is None
    assert goodput([{"started": 1.0}], Tally([at(5.0)])) is None
