"""Write and read metrics.jsonl, one JSON object a line. No torch.

Each line tells its own number and checksum (utils/seals.py). A line that is damaged is left out
when the file is read, and named.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from and_dist.runs.records import check_event, parse, say_damage
from and_dist.utils.disk_errors import DiskError, naming_disk
from and_dist.utils.owned_files import open_to_append, starts_with
from and_dist.utils.plain_files import open_plain
from and_dist.utils.seals import NOT_AS_WRITTEN, NUMBER, SEAL, Line, seal_line, unseal_line

T = TypeVar("T")
LONGEST_LINE = 16_000_000
"""Bytes. The longest lines name the images of a batch."""
MOST_NAMED = 8
"""The most damaged lines that are named; the others are counted."""
_BEGINNING = b'{"event": "'
_KIND = re.compile(rb'\{"event": "(\w+)"')
_STEP = re.compile(rb'\{"event": "step".*?"step": (\d{1,12})\D')
_TIME = re.compile(rb'\{"event": "\w+", "time": (\d{1,11}(?:\.\d{1,9})?)\D')
"""Patterns of the kind, the step and the time of a line of ours."""
is_metrics = starts_with(r'\{"event": "\w+", "time": ')


class Forgotten(NamedTuple):
    """Tell how far a run had come that goes back to a checkpoint."""

    last_step: int = 0
    last_time: float = 0.0
    """The time of the last line there was, in seconds since 1970; 0 where there was none."""
    kept_time: float = 0.0
    """The time of the last line that stays."""

    @property
    def seconds(self) -> float:
        """Return the time of training that is forgotten."""
        return self.last_time - self.kept_time if self.kept_time else 0.0


class MetricsFile:
    """Writes one JSON object a line; only the coordinator's writes.

    Lines that a disk does not take are held back, and written when it takes them.
    """

    def __init__(self, path: Path, is_writer: bool) -> None:
        """Open the file to append, if this rank is the writer."""
        self.path = path
        self._file = open_to_append(path, is_metrics) if is_writer else None
        self._num_bytes = path.stat().st_size if self._file else 0
        """The bytes of whole lines, behind which a disk may have taken a part of another."""
        self._num_lines = _survey(path).num_lines if is_writer else 0
        self._waiting: list[bytes] = []
        self._lock = threading.Lock()

    def go_back_to(self, num_bytes: int, num_lines: int | None = None) -> Forgotten:
        """Forget all lines but the first ones; return how far they had come.

        Bytes count where the number of lines is not known, as in earlier revisions.
        """
        if not self._file:
            return Forgotten()
        size = self.path.stat().st_size
        if size < num_bytes:
            raise RuntimeError(
                f"{self.path} has {size:,} bytes, but had {num_bytes:,} when the checkpoint was "
                "made; put it back, or start anew under another name"
            )
        found = _survey(self.path, num_bytes, num_lines)
        if found.whole_bytes < size:
            say_damage(
                f"{self.path} ends within a line, so the run may have come further than is known"
            )
        with naming_disk(self.path):
            self._file.truncate(found.kept_bytes)
        self._num_bytes = found.kept_bytes
        self._num_lines = found.num_lines if num_lines is None else num_lines
        self._waiting.clear()
        if found.num_lost:
            say_damage(
                f"{_lines(found.num_lost)} of {self.path} after the checkpoint "
                f"{'was' if found.num_lost == 1 else 'were'} damaged or lost, so it is not known "
                "how many steps are done again"
            )
        return Forgotten(found.last_step, found.last_time, found.kept_time)

    def write(self, record: dict[str, Any]) -> None:
        """Append a line."""
        if not self._file:
            return
        with self._lock:
            self._num_lines += 1
            self._waiting.append(seal_line(record, self._num_lines))
        with contextlib.suppress(DiskError):  # the next save reports it
            self._write_waiting()

    def size(self) -> tuple[int, int]:
        """Return the bytes and lines so far, those held back included, which a checkpoint keeps."""
        if not self._file:
            return 0, 0
        with self._lock:
            return self._num_bytes + sum(map(len, self._waiting)), self._num_lines

    def flush(self) -> None:
        """Put all lines on the disk; any thread may call it."""
        if self._file:
            self._write_waiting()
            with naming_disk(self.path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write what was held back, if the disk takes it, and close the file."""
        if self._file:
            with contextlib.suppress(DiskError):
                self._write_waiting()
            self._file.close()

    def _write_waiting(self) -> None:
        """Write the lines that wait, whole and in order; raise DiskError if the disk refuses."""
        assert self._file is not None
        with self._lock, naming_disk(self.path, sum(map(len, self._waiting))):
            while self._waiting:
                if os.fstat(self._file.fileno()).st_size != self._num_bytes:
                    self._file.truncate(self._num_bytes)
                written = self._file.write(self._waiting[0])
                if written != len(self._waiting[0]):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._num_bytes += written
                del self._waiting[0]


@dataclass
class Numbering:
    """Follows the numbers of lines, and counts those that are damaged or missing."""

    last: int = 0
    """The number of the last sound line."""
    unsound: int = 0
    """How many lines after it are damaged."""
    num_damaged: int = 0
    num_missing: int = 0
    named: list[int] = field(default_factory=list)
    """Where the first damaged lines stand in the file."""

    @property
    def here(self) -> int:
        """Return the number that the newest line has, or had."""
        return self.last + self.unsound

    @property
    def num_lost(self) -> int:
        """Return the number of lines that are damaged or missing."""
        return self.num_damaged + self.num_missing

    def take(self, number: int | None) -> None:
        """Count a sound line; raise ValueError for one that stands elsewhere already."""
        number = self.here + 1 if number is None else number
        if number <= self.last:
            raise ValueError(NOT_AS_WRITTEN)
        self.num_missing += max(0, number - self.here - 1)
        self.last, self.unsound = number, 0

    def leave_out(self, at: int) -> None:
        """Count a damaged line."""
        self.num_damaged += 1
        self.unsound += 1
        if len(self.named) < MOST_NAMED:
            self.named.append(at)

    def say(self, path: Path) -> None:
        """Say in one line each what is damaged and what is missing, if anything is."""
        if self.num_damaged:
            is_one, more = self.num_damaged == 1, ", ..." * (self.num_damaged > len(self.named))
            say_damage(
                f"{_lines(self.num_damaged)} of {path} {'is' if is_one else 'are'} damaged and "
                f"left out: line{'s' * (not is_one)} {', '.join(map(str, self.named))}{more}"
            )
        if self.num_missing:
            is_one = self.num_missing == 1
            say_damage(f"{_lines(self.num_missing)} of {path} {'is' if is_one else 'are'} missing")


def stream(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines in order; a last line that is still being written is not one.

    Damaged lines are left out, and said at the end.
    """
    return _sound_lines(path, _record_of)


def read_metrics(path: Path, event: str) -> list[dict[str, Any]]:
    """Return all lines of one kind, in order."""
    return [record for record in stream(path) if record["event"] == event]


def read_last(
    path: Path, events: Container[str], every: Container[str] = ()
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Return the last line of each of some kinds, by kind, and every line of other kinds.

    Only these are parsed, since the steps of days are a hundred megabytes.
    """

    def read(line: Line) -> tuple[str, Line, dict[str, Any] | None]:
        event, _ = _event_of(line)
        return event, line, _record_of(line) if event in every else None

    last: dict[str, Line] = {}
    found = []
    for event, line, record in _sound_lines(path, read):
        if event in events:
            last[event] = line
        elif record is not None:
            found.append(record)
    try:
        return {event: _record_of(line) for event, line in last.items()}, found
    except ValueError:  # damage that no seal has told
        return {
            record["event"]: record for record in stream(path) if record["event"] in events
        }, found


def _event_of(line: Line) -> tuple[str, Line]:
    """Return the event of a line, and the line; raise ValueError where it is none of ours."""
    found = _KIND.match(line.content)
    if found is None or (line.number is None and f'"{NUMBER}": '.encode() in line.content):
        return str(_record_of(line)["event"]), line
    return found[1].decode(), line


def _record_of(line: Line) -> dict[str, Any]:
    """Return the record of a line; raise ValueError for one that is none of ours."""
    record = check_event(parse(line.content))
    if line.number is None and {NUMBER, SEAL} & record.keys():
        raise ValueError(NOT_AS_WRITTEN)  # a seal without its form
    record.pop(NUMBER, None)
    return record


def _sound_lines(path: Path, read: Callable[[Line], T]) -> Iterator[T]:
    """Yield what `read` makes of each line, without those for which it raises ValueError."""
    numbering = Numbering()
    for at, _, raw in _whole_lines(path, or_odd_end=True):
        try:
            line = unseal_line(raw)
            found = read(line)
            numbering.take(line.number)
        except ValueError:
            numbering.leave_out(at)
            continue
        yield found
    numbering.say(path)


def _whole_lines(path: Path, or_odd_end: bool = False) -> Iterator[tuple[int, int, bytes]]:
    """Yield place, end in bytes, and content of the lines that end; the beginning of a long one.

    A last line that does not end is one that is still being written. With `or_odd_end` it is
    yielded where it does not even begin as those do.
    """
    with open_plain(path) as file:
        end = 0
        for at in count(1):
            line = last = file.readline(LONGEST_LINE)
            end += len(line)
            while last and not last.endswith(b"\n"):
                last = file.readline(LONGEST_LINE)
                end += len(last)
            if not last:
                if or_odd_end and not line.startswith(_BEGINNING[: len(line)]):
                    yield at, end, line
                return
            yield at, end, line


@dataclass
class Survey:
    """Holds what a file has up to some line."""

    kept_bytes: int = 0
    whole_bytes: int = 0
    """The bytes of all lines that end."""
    num_lines: int = 0
    last_step: int = 0
    """The last step in the whole file."""
    last_time: float = 0.0
    """The time of the last line of the whole file."""
    kept_time: float = 0.0
    num_lost: int = 0
    """The number of lines after the kept ones that are damaged or missing."""


def _survey(path: Path, num_bytes: int | None = None, num_lines: int | None = None) -> Survey:
    """Return where lines end of which so many come first, and the last step of all lines.

    Lines count by their own numbers, so that one that is lost or repeated moves nothing.
    """
    found, numbering, is_kept, lost_before = Survey(), Numbering(), True, 0
    for at, end, raw in _whole_lines(path):
        found.whole_bytes = end
        try:
            line = unseal_line(raw)
            numbering.take(line.number)
        except ValueError:
            numbering.leave_out(at)
        else:
            step, time = _STEP.match(line.content), _TIME.match(line.content)
            found.last_step = int(step[1]) if step else found.last_step
            found.last_time = float(time[1]) if time else found.last_time
        if num_lines is not None:
            is_kept &= numbering.here <= num_lines
        elif num_bytes is not None:
            is_kept &= end <= num_bytes
        if is_kept:
            found.kept_bytes, found.num_lines = end, numbering.here
            found.kept_time, lost_before = found.last_time, numbering.num_lost
    found.num_lost = numbering.num_lost - lost_before
    return found


def _lines(count: int) -> str:
    """Return a number of lines in words."""
    return f"{count:,} line{'s' * (count != 1)}"
