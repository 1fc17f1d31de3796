"""Show a run on the console: live view, plain lines, JSON or nothing. No torch."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from and_dist.runs.schedule import Schedule
from and_dist.utils.disk_errors import errno_of
from and_dist.utils.formatting import describe_step, format_seconds, percent, safe_lines
from and_dist.utils.progress import Advance

SECONDS_BETWEEN_LINES = 15.0
Style = Literal["auto", "quiet", "json"]
"""auto: a live view in a terminal, lines elsewhere; quiet: nothing; json: metrics.jsonl's lines."""


class Display:
    """Shows what a run does; on other ranks than the coordinator it shows nothing."""

    def __init__(self, is_shown: bool, style: Style = "auto") -> None:
        """Choose between live view, lines, JSON and silence."""
        self.console = Console(quiet=not is_shown or style != "auto", highlight=False, markup=False)
        self._is_json = is_shown and style == "json"
        self._screen: Screen | None = None
        self._schedule: Schedule | None = None
        self._ranks = 1
        self._rank_word = "rank"
        self._last_line = time.monotonic()
        self._started = time.monotonic()
        self._first_step = 0
        self._said_before: list[dict[str, Any]] = []
        self.place = ""
        """Where in the run longer work is done, such as `round 1/4`; phases are named after it."""

    def say(self, text: str) -> None:
        """Print a line."""
        text = safe_lines(text)
        with _unless_the_disk_refuses():
            self.console.print(text, markup=False, soft_wrap=True)
        if self._is_json:
            self._print({"event": "message", "time": round(time.time(), 3), "text": text})

    def show(self, table: Table) -> None:
        """Print a table."""
        with _unless_the_disk_refuses():
            self.console.print(table)

    def record(self, record: dict[str, Any]) -> None:
        """Show an event, given as a line of metrics.jsonl."""
        if self._is_json:
            self._print(record)
        if self._screen:
            self._screen.record(record)
        elif record["event"] == "step":
            self._line_of_step(record)

    def recall(self, records: Iterable[dict[str, Any]]) -> None:
        """Take the events that a run resumes from, for the live view."""
        if self._is_live:
            self._said_before = [record for record in records if record["event"] != "step"]

    @contextmanager
    def training(
        self, schedule: Schedule, done_steps: int, name: str, ranks: int, rank_word: str
    ) -> Iterator[None]:
        """Enclose the whole training, of which some steps may be done already.

        `rank_word` names a rank, such as GPU.
        """
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
        """Enclose longer work between steps, and show its progress."""
        what = f"{self.place}: {what}" if self.place else what
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
        """Return an Advance that prints a line now and then."""
        started, done = time.monotonic(), 0.0

        def advance(share: float) -> None:
            nonlocal done
            done = min(1.0, done + share)
            now = time.monotonic()
            if now - max(started, self._last_line) > SECONDS_BETWEEN_LINES and done > 0:
                self._last_line = now
                left = (now - started) * (1 - done) / done
                self.say(f"{what}  {100 * done:.0f} % done  {format_seconds(left)} left")

        return advance

    def _line_of_step(self, record: dict[str, Any]) -> None:
        """Print a step's figures, not more often than every few seconds."""
        now = time.monotonic()
        if self._schedule is None or now - self._last_line <= SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        at, step = self._schedule.place_of(record), record["step"]
        rate = max(step - self._first_step, 1) / (now - self._started)
        left = format_seconds((self._schedule.total_steps - step) / rate)
        figures = describe_step(record, self._ranks, self._rank_word)
        with _unless_the_disk_refuses():
            self.console.print(f"{at}  {figures}  {left} left", markup=False, soft_wrap=True)

    def _print(self, record: dict[str, Any]) -> None:
        """Print an event as JSON."""
        with _unless_the_disk_refuses():
            print(json.dumps(record), flush=True)

    @property
    def has_symbols(self) -> bool:
        """Return whether the console can show more than ASCII."""
        return not self.console.options.ascii_only

    @property
    def _is_live(self) -> bool:
        """Return whether the console is a terminal and the view is redrawn in place."""
        return self.console.is_terminal and not self.console.quiet


@contextmanager
def _unless_the_disk_refuses() -> Iterator[None]:
    """Enclose printing: a log on a full disk does not end a run, and least of all on one rank."""
    try:
        yield
    except OSError as error:
        if errno_of(error) is None:
            raise


def _bars(console: Console) -> Progress:
    """Return a progress bar for longer work."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TimeRemainingColumn(compact=True),
        console=console,
        expand=True,
    )


class Bars:
    """Shows progress bars of one thing after another, or a line each without a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        """Prepare the bars on a console."""
        self._console = console or Console(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            disable=not self._console.is_terminal or self._console.quiet,
        )
        self._task = TaskID(0)

    def __enter__(self) -> Bars:
        """Show the bars."""
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take the bars away."""
        self._progress.stop()

    def start(self, what: str, total: int | None) -> None:
        """Begin a bar for the next piece of work."""
        self._task = self._progress.add_task(what, total=total)
        if not self._console.is_terminal:
            number = "" if total is None else f": {total:,}"
            with _unless_the_disk_refuses():
                self._console.print(f"{what}{number}", markup=False)

    def advance(self, count: int) -> None:
        """Move the bar by so many items."""
        self._progress.advance(self._task, count)


LOOKS = 8
"""The number of logged steps over which the speed is measured."""


class Screen:
    """Redraws a training run in place; what is printed meanwhile goes above it."""

    def __init__(
        self,
        console: Console,
        schedule: Schedule,
        done_steps: int,
        name: str,
        ranks: int,
        rank_word: str,
    ) -> None:
        """Prepare the view."""
        self.phases = Progress(TextColumn("{task.description}"), BarColumn(None), expand=True)
        """Bars of longer work between steps."""
        self._schedule = schedule
        self._name, self._ranks, self._rank_word = name, ranks, rank_word
        self._place, self._figures = "starting", ""
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
        """Show the view."""
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the view as it last was."""
        self._live.stop()

    def __rich__(self) -> Group:
        """Return what is drawn now."""
        others = [self._knn]
        if self._saved:
            ago = format_seconds(time.time() - self._saved_at)
            others.append(f"saved {self._saved}, {ago} ago")
        said = "  ".join(filter(None, others))
        texts = [Text(text) for text in (self._figures, said) if text]
        bars = [self._bars] if self._place != "starting" else []
        return Group(Text(f"{self._name}  {self._place}"), *texts, *bars, self.phases)

    def record(self, record: dict[str, Any]) -> None:
        """Take an event, given as a line of metrics.jsonl."""
        event = record["event"]
        if event == "step":
            self._place = self._schedule.place_of(record)
            self._figures = describe_step(record, self._ranks, self._rank_word)
            self._move_bars(record)
        elif event == "checkpoint":
            self._saved, self._saved_at = record["name"], record["time"]
        elif event in ("round", "discovery"):
            # The figures of the last step belong to the round before.
            done = " done" if event == "round" else ""
            self._place = f"{self._schedule.round_of(record['round'])}{done}"
            self._figures = ""
            self._move_bars_to_boundary(record["round"], event == "round")
        if record.get("knn") is not None:
            self._knn = f"kNN {percent(record['knn'])} %"
        elif record.get("knn_bank") is not None:
            self._knn = f"bank-kNN {percent(record['knn_bank'])} %"

    def _move_bars(self, record: dict[str, Any]) -> None:
        """Move the bars of epoch, round and run to a step, and predict when each ends."""
        now, step = time.monotonic(), int(record["step"])
        before, step_before = self._looks[0]
        self._looks.append((now, step))
        recent = (step - step_before) / (now - before)
        began, first = self._first_look
        overall = (step - first) / (now - began)  # the work between steps included
        self._fill_bars(record, {"epoch": recent, "round": recent, "run": overall})

    def _move_bars_to_boundary(self, round_index: int, is_done: bool) -> None:
        """Move the bars to the beginning or the end of a round."""
        epochs = self._schedule.epochs[round_index]
        epoch = max(0, epochs - 1) if is_done else 0
        step = self._schedule.steps_before(round_index, epochs if is_done else 0)
        self._fill_bars({"round": round_index, "epoch": epoch, "step": step}, {})

    def _fill_bars(self, record: dict[str, Any], speeds: Mapping[str, float]) -> None:
        """Fill the bars up to a place, with the time that is left at a speed in steps a second."""
        for what, task in self._tasks.items():
            start, stop = _SPANS[what](self._schedule, record)
            speed, done = speeds.get(what, 0.0), int(record["step"])
            is_known = speed > 0 or done == stop
            left = format_seconds((stop - done) / (speed or 1)) if is_known else "-"
            self._bars.update(task, completed=done - start, total=stop - start, left=left)


def _of_epoch(schedule: Schedule, record: dict[str, Any]) -> tuple[int, int]:
    """Return the first step of a record's epoch and the one after its last."""
    start = schedule.steps_before(record["round"], record["epoch"])
    return start, start + schedule.steps_per_epoch


def _of_round(schedule: Schedule, record: dict[str, Any]) -> tuple[int, int]:
    """Return the first step of a record's round and the one after its last."""
    return schedule.steps_before(record["round"]), schedule.steps_before(record["round"] + 1)


def _of_run(schedule: Schedule, _: dict[str, Any]) -> tuple[int, int]:
    """Return the first step of the run and the one after its last."""
    return 0, schedule.total_steps


_SPANS = {"epoch": _of_epoch, "round": _of_round, "run": _of_run}
"""The bars, and functions that return the first step of each and the one after its last."""
