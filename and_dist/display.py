"""What the person waiting sees: lines, or a progress bar in a terminal. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

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

SECONDS_BETWEEN_LINES = 15.0
Advance = Callable[[float], None]
"""Is told of every further share of some work that is done."""
Phase = Callable[[str], AbstractContextManager[Advance]]
"""Around work that takes a while: what it is called -> whom to tell of its progress."""


def silently(share: float) -> None:
    """An Advance for when nobody watches."""


class Display:
    """A progress bar in a terminal, a line now and then elsewhere, nothing on other ranks."""

    def __init__(self, is_shown: bool) -> None:
        self.console = Console(quiet=not is_shown, highlight=False)
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._last_line = time.monotonic()
        self._started = time.monotonic()
        self._first_step = 0

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def show(self, table: Table) -> None:
        self.console.print(table)

    @contextmanager
    def training(self, total_steps: int, done_steps: int) -> Iterator[None]:
        """Around the whole training, of which some steps may be done already."""
        self._started, self._first_step = time.monotonic(), done_steps
        if not self._has_bars:
            yield
            return
        with self._bars() as self._progress:
            self._task = self._progress.add_task(
                "starting", total=total_steps, completed=done_steps, figures=""
            )
            yield
        self._progress = None

    @contextmanager
    def phase(self, what: str) -> Iterator[Advance]:
        """Around something longer between steps."""
        if not self._has_bars:
            yield self._lines_of(what)
            return
        with nullcontext(self._progress) if self._progress else self._bars() as bars:
            task = bars.add_task(what, total=1.0, figures="")
            yield lambda share: bars.advance(task, share)
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

    @property
    def _has_bars(self) -> bool:
        return self.console.is_terminal and not self.console.quiet

    def _bars(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            expand=True,
        )

    def step(self, done: int, total: int, where: str, loss: float, images_per_s: float) -> None:
        figures = f"loss {loss:.3f}  {images_per_s:,.0f} images/s"
        if self._progress:
            self._progress.update(self._task, completed=done, description=where, figures=figures)
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            rate = (done - self._first_step) / (time.monotonic() - self._started)
            self.say(f"{where}  {figures}  {format_seconds((total - done) / rate)} left")


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


def format_seconds(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
