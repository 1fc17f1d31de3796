"""What the console says of a run, at the boundaries of rounds above all."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from and_dist.runs.console import Display, Screen
from and_dist.runs.schedule import Schedule
from and_dist.runs.summary import as_table, describe_gain
from and_dist.utils.formatting import sparkline

SCHEDULE = Schedule((2, 2, 2), 4)


def step(round_index: int, epoch: int, number: int) -> dict[str, Any]:
    figures = {"loss": 1.5, "lr": 0.03, "images_per_s": 1234.5, "data_wait": 0.1, "memory_mb": 1500}
    place = {"round": round_index, "epoch": epoch, "step": number}
    return {"event": "step", **place, **figures}


def shown(screen: Screen) -> str:
    console = Console(width=100, file=io.StringIO(), force_terminal=False)
    with console.capture() as captured:
        console.print(screen)
    return captured.get()


def test_between_rounds_the_view_names_the_round_that_it_is_in() -> None:
    screen = Screen(Console(), SCHEDULE, 0, "mine", 1, "rank")
    assert shown(screen).startswith("mine  starting")
    screen.record(step(0, 1, 8))
    assert "mine  round 0/2 epoch 2/2 step 4/4" in shown(screen)
    assert "loss 1.500  lr 0.03  1,234 images/s" in shown(screen)
    screen.record({"event": "round", "round": 0, "knn": 0.5, "knn_bank": 0.4})
    assert "mine  round 0/2 done" in shown(screen)
    assert "loss" not in shown(screen)
    screen.record({"event": "discovery", "round": 1})
    assert shown(screen).startswith("mine  round 1/2\n")
    assert "kNN 50.0 %" in shown(screen)
    screen.record(step(1, 0, 9))
    assert "mine  round 1/2 epoch 1/2 step 1/4" in shown(screen)


def test_longer_work_is_named_after_the_round(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("and_dist.runs.console.SECONDS_BETWEEN_LINES", -1.0)
    display = Display(is_shown=True)
    display.place = SCHEDULE.round_of(1)
    with display.phase("kNN") as advance:
        advance(0.5)
    assert capsys.readouterr().out.startswith("round 1/2: kNN  50 % done  ")


def summary(*shares: float | None, random: float | None = 0.2) -> dict[str, Any]:
    rounds = [
        {"round": at, "anchors": 0, "consistency": None, "knn_bank": share, "knn": share}
        for at, share in enumerate(shares)
    ]
    return {
        "raw_pixels": {"knn": 0.3},
        "random": {"knn": random},
        "rounds": [{**r, "seconds": 1.0} for r in rounds],
    }


def test_the_last_table_ends_with_a_sparkline_of_knn() -> None:
    table = as_table(summary(0.1, 0.4, 0.9), "mine", "untrained network")
    assert table.caption == "kNN ▂▁▄█  20.0 % (the untrained network) to 90.0 %"
    assert as_table(summary(None, None), "mine", "untrained network").caption is None
    plain = as_table(summary(0.1, random=None), "mine", "untrained network", has_symbols=False)
    assert plain.caption == "kNN 10.0 % (round 0) to 10.0 %"
    assert describe_gain([0.5], 0.5, "loaded weights", has_symbols=True).startswith("kNN ▁▁ ")


def test_a_sparkline_reaches_from_the_lowest_to_the_highest_bar() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([3.0]) == "▁"


def test_a_terminal_without_symbols_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    display = Display(is_shown=True)
    assert display.has_symbols
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(display, "console", Console(file=ascii_only))
    assert not display.has_symbols
