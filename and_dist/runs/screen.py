"""A training run in a terminal: where it is, how fast it goes, and how long it has to go."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from and_dist.runs.schedule import Schedule
from and_dist.utils.formatting import describe_step, format_seconds, percent

LOOKS = 8
"""How many looks back the speed is taken from."""


class Screen:
    """Redrawn in place; what is printed meanwhile goes above it."""

    def __init__(
        self,
        console: Console,
        schedule: Schedule,
        done_steps: int,
        name: str,
        ranks: int,
        rank_word: str,
    ) -> None:
        self.phases = Progress(TextColumn("{task.description}"), BarColumn(None), expand=True)
        """Of what goes on between steps."""
        self._schedule = schedule
        self._name, self._ranks, self._rank_word = name, ranks, rank_word
        self._record: dict[str, Any] | None = None
        self._knn, self._saved, self._saved_at = "", "", 0.0
        self._looks = deque([(time.monotonic(), done_steps)], maxlen=LOOKS)
        self._first_look = self._looks[0]
        self._bars = Progress(
            TextColumn("{task.description:5}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f} %  {task.fields[left]:>8} left"),
            expand=True,
        )
        self._tasks = {what: self._bars.add_task(what, left="-") for what in _SPANS}
        self._live = Live(self, console=console, refresh_per_second=4)

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def __rich__(self) -> Group:
        others = [self._knn]
        if self._saved:
            ago = format_seconds(time.time() - self._saved_at)
            others.append(f"saved {self._saved}, {ago} ago")
        said = "  ".join(filter(None, others))
        texts = [Text(said)] if said else []
        if self._record is None:
            return Group(Text(f"{self._name}  starting"), *texts, self.phases)
        place = self._schedule.place_of(self._record)
        figures = describe_step(self._record, self._ranks, self._rank_word)
        return Group(Text(f"{self._name}  {place}"), Text(figures), *texts, self._bars, self.phases)

    def record(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
        if record["event"] == "step":
            self._record = record
            self._move_bars(record)
        elif record["event"] == "checkpoint":
            self._saved, self._saved_at = record["name"], record["time"]
        elif record.get("knn") is not None:
            self._knn = f"kNN {percent(record['knn'])} %"
        elif record.get("knn_bank") is not None:
            self._knn = f"bank-kNN {percent(record['knn_bank'])} %"

    def _move_bars(self, record: dict[str, Any]) -> None:
        now, step = time.monotonic(), int(record["step"])
        before, step_before = self._looks[0]
        self._looks.append((now, step))
        recent = (step - step_before) / (now - before)
        began, first = self._first_look
        overall = (step - first) / (now - began)  # with what goes on between steps
        for what, task in self._tasks.items():
            start, stop = _SPANS[what](self._schedule, record)
            speed = overall if what == "run" else recent
            left = format_seconds((stop - step) / speed) if speed > 0 else "-"
            self._bars.update(task, completed=step - start, total=stop - start, left=left)


def _of_epoch(schedule: Schedule, record: dict[str, Any]) -> tuple[int, int]:
    start = schedule.steps_before(record["round"], record["epoch"])
    return start, start + schedule.steps_per_epoch


def _of_round(schedule: Schedule, record: dict[str, Any]) -> tuple[int, int]:
    return schedule.steps_before(record["round"]), schedule.steps_before(record["round"] + 1)


def _of_run(schedule: Schedule, _: dict[str, Any]) -> tuple[int, int]:
    return 0, schedule.total_steps


_SPANS = {"epoch": _of_epoch, "round": _of_round, "run": _of_run}
"""First step and the one after the last, of what has a bar."""
