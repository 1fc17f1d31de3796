"""What a run says of itself: metrics.jsonl, and lines or a progress bar for the person waiting."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
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
from torch import Tensor

SECONDS_BETWEEN_LINES = 15.0


class MetricsFile:
    """One JSON object a line. Only the coordinator has one that writes."""

    def __init__(self, path: Path, keep_bytes: int, is_writer: bool) -> None:
        """Continue a file from where its checkpoint left it; later lines are forgotten."""
        self.path = path
        self._file = None
        if is_writer:
            path.touch()
            os.truncate(path, keep_bytes)
            self._file = path.open("a", encoding="utf-8")

    def write(self, event: str, **values: Any) -> None:
        if self._file:
            self._file.write(json.dumps({"event": event, **values}) + "\n")
            self._file.flush()

    def flushed_size(self) -> int:
        """Bytes that are safely on disk, for a checkpoint to remember."""
        if not self._file:
            return 0
        os.fsync(self._file.fileno())
        return self._file.tell()

    def read(self, event: str) -> list[dict[str, Any]]:
        return read_metrics(self.path, event)

    def close(self) -> None:
        if self._file:
            self._file.close()


def read_metrics(path: Path, event: str) -> list[dict[str, Any]]:
    """All lines of one kind, in order."""
    with path.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [record for record in records if record["event"] == event]


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
        if not self.console.is_terminal or self.console.quiet:
            yield
            return
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            expand=True,
        ) as self._progress:
            self._task = self._progress.add_task(
                "starting", total=total_steps, completed=done_steps, figures=""
            )
            yield
        self._progress = None

    def step(self, done: int, total: int, where: str, loss: float, images_per_s: float) -> None:
        figures = f"loss {loss:.3f}  {images_per_s:,.0f} images/s"
        if self._progress:
            self._progress.update(self._task, completed=done, description=where, figures=figures)
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            rate = (done - self._first_step) / (time.monotonic() - self._started)
            self.say(f"{where}  {figures}  {format_seconds((total - done) / rate)} left")


class LossMeter:
    """Mean losses of an epoch, kept on the device until someone looks."""

    def __init__(self, device: torch.device) -> None:
        self._recent_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._recent_images = 0
        self._earlier_sum, self._earlier_images = 0.0, 0
        self._first_bad = torch.tensor(-1, device=device)

    def add(self, loss: Tensor, step: int, images: int) -> None:
        is_first_bad = ~loss.isfinite() & (self._first_bad < 0)
        self._first_bad = torch.where(is_first_bad, step, self._first_bad)
        self._recent_sum += loss * images
        self._recent_images += images

    def first_bad_step(self) -> int | None:
        """The first step whose loss was not finite."""
        step = int(self._first_bad.item())
        return step if step >= 0 else None

    def recent(self) -> float:
        """Mean over the images since the last call."""
        total, images = float(self._recent_sum.item()), self._recent_images
        self._earlier_sum += total
        self._earlier_images += images
        self._recent_sum.zero_()
        self._recent_images = 0
        return total / images

    def mean(self) -> float:
        """Mean over all images up to the last call of recent()."""
        return self._earlier_sum / self._earlier_images


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


class StepClock:
    """Images per second between two looks."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._images = 0

    def count(self, images: int) -> None:
        self._images += images

    def rate(self) -> float:
        """Images per second since the last call."""
        now = time.perf_counter()
        rate = self._images / (now - self._since)
        self._since, self._images = now, 0
        return rate


def format_seconds(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
