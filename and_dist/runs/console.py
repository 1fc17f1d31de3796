"""What whoever waits sees: a screen in a terminal, lines elsewhere, JSON, or nothing. No torch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from and_dist.runs.schedule import Schedule
from and_dist.runs.screen import Screen
from and_dist.utils.formatting import describe_step, format_seconds, percent, safe_lines
from and_dist.utils.progress import Advance

SECONDS_BETWEEN_LINES = 15.0
Style = Literal["auto", "quiet", "json"]
"""auto: a screen in a terminal, lines elsewhere. quiet: nothing. json: what metrics.jsonl holds."""


class Display:
    """Of the coordinator; on other ranks it shows nothing."""

    def __init__(self, is_shown: bool, style: Style = "auto") -> None:
        self.console = Console(quiet=not is_shown or style != "auto", highlight=False)
        self._is_json = is_shown and style == "json"
        self._screen: Screen | None = None
        self._schedule: Schedule | None = None
        self._ranks = 1
        self._rank_word = "rank"
        self._last_line = time.monotonic()
        self._started = time.monotonic()
        self._first_step = 0
        self._said_before: list[dict[str, Any]] = []

    def say(self, text: str) -> None:
        text = safe_lines(text)
        self.console.print(text, markup=False, soft_wrap=True)
        if self._is_json:
            self._print({"event": "message", "time": round(time.time(), 3), "text": text})

    def show(self, table: Table) -> None:
        self.console.print(table)

    def record(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
        if self._is_json:
            self._print(record)
        if self._screen:
            self._screen.record(record)
        elif record["event"] == "step":
            self._line_of_step(record)

    def recall(self, records: Iterable[dict[str, Any]]) -> None:
        """Lines of metrics.jsonl that a run goes on from."""
        if self._is_live:
            self._said_before = [record for record in records if record["event"] != "step"]

    @contextmanager
    def training(
        self, schedule: Schedule, done_steps: int, name: str, ranks: int, rank_word: str
    ) -> Iterator[None]:
        """Around the whole training, of which some steps may be done already. A rank may go by
        another word, such as GPU."""
        self._started, self._first_step, self._schedule = time.monotonic(), done_steps, schedule
        self._ranks, self._rank_word = ranks, rank_word
        if not self._is_live:
            yield
            return
        self._screen = Screen(self.console, schedule, done_steps, name, ranks, rank_word)
        for record in self._said_before:
            self._screen.record(record)
        try:
            with self._screen:
                yield
        finally:
            self._screen = None

    @contextmanager
    def phase(self, what: str) -> Iterator[Advance]:
        """Around something longer between steps."""
        if not self._is_live:
            yield self._lines_of(what)
            return
        with nullcontext(self._screen.phases) if self._screen else _bars(self.console) as bars:
            task = bars.add_task(what, total=1.0)
            try:
                yield lambda share: bars.advance(task, share)
            finally:
                bars.remove_task(task)

    def _lines_of(self, what: str) -> Advance:
        started, done = time.monotonic(), 0.0

        def advance(share: float) -> None:
            nonlocal done
            done = min(1.0, done + share)
            now = time.monotonic()
            if now - max(started, self._last_line) > SECONDS_BETWEEN_LINES and done > 0:
                self._last_line = now
                left = (now - started) * (1 - done) / done
                self.say(f"{what}  {percent(done)} %  {format_seconds(left)} left")

        return advance

    def _line_of_step(self, record: dict[str, Any]) -> None:
        now = time.monotonic()
        if self._schedule is None or now - self._last_line <= SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        at, step = self._schedule.place_of(record), record["step"]
        rate = max(step - self._first_step, 1) / (now - self._started)
        left = format_seconds((self._schedule.total_steps - step) / rate)
        figures = describe_step(record, self._ranks, self._rank_word)
        self.console.print(f"{at}  {figures}  {left} left", markup=False, soft_wrap=True)

    def _print(self, record: dict[str, Any]) -> None:
        print(json.dumps(record), flush=True)

    @property
    def _is_live(self) -> bool:
        return self.console.is_terminal and not self.console.quiet


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TimeRemainingColumn(compact=True),
        console=console,
        expand=True,
    )


class Bars:
    """Progress bars of one thing after another, or a line each where there is no terminal."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = TaskID(0)

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def start(self, what: str, total: int) -> None:
        self._task = self._progress.add_task(what, total=total)
        if not self._console.is_terminal:
            self._console.print(f"{what}: {total:,}", markup=False)

    def advance(self, count: int) -> None:
        self._progress.advance(self._task, count)
