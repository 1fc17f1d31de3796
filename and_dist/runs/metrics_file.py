"""Write and read metrics.jsonl, one JSON object a line. No torch."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from and_dist.runs.records import check_event, parse
from and_dist.utils.disk_errors import DiskError, naming_disk
from and_dist.utils.owned_files import open_to_append, starts_with
from and_dist.utils.plain_files import open_plain

LONGEST_LINE = 16_000_000
"""Bytes. The longest lines name the images of a batch."""
BEGINNING = re.compile(rb'\{"event": "\w+", "time": (?P<time>\d{1,11}(\.\d{1,9})?), .*\}\n')
STEP = re.compile(rb'\{"event": "step", .* "step": (?P<step>\d{1,12}), .*\}\n')
"""Lines of ours, as far as a run that resumes looks at them."""
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
        self._waiting: list[bytes] = []
        self._lock = threading.Lock()

    def go_back_to(self, num_bytes: int) -> Forgotten:
        """Forget all lines after the first bytes; return how far they had come."""
        if not self._file:
            return Forgotten()
        size = self.path.stat().st_size
        if size < num_bytes:
            raise RuntimeError(
                f"{self.path} has {size:,} bytes, but had {num_bytes:,} when the checkpoint was "
                "made; put it back, or start anew under another name"
            )
        found = _look_at_end(self.path, num_bytes)
        with naming_disk(self.path):
            self._file.truncate(num_bytes)
        self._num_bytes = num_bytes
        self._waiting.clear()
        return found

    def write(self, record: dict[str, Any]) -> None:
        """Append a line."""
        if not self._file:
            return
        with self._lock:
            self._waiting.append(json.dumps(record).encode() + b"\n")
        with contextlib.suppress(DiskError):  # the next save reports it
            self._write_waiting()

    def size(self) -> int:
        """Return the bytes so far, held-back lines included, for a checkpoint to remember."""
        if not self._file:
            return 0
        with self._lock:
            return self._num_bytes + sum(map(len, self._waiting))

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


def stream(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines in order; a last line that is still being written is not one.

    Raise ValueError with the number of a line that is none of ours.
    """
    with open_plain(path) as lines:
        for number in count(1):
            line = lines.readline(LONGEST_LINE)
            if not line.endswith(b"\n"):
                if len(line) == LONGEST_LINE:
                    raise ValueError(f"{path}, line {number}: it is longer than a line of ours")
                return
            try:
                yield check_event(parse(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None


def read_metrics(path: Path, event: str) -> list[dict[str, Any]]:
    """Return all lines of one kind, in order."""
    return [record for record in stream(path) if record["event"] == event]


def _look_at_end(path: Path, num_bytes: int) -> Forgotten:
    """Return the last step in a file, and the times of the last line and of the last one to stay.

    Lines that are bent or torn are passed over: no other line depends on them.
    """
    last_step, last_time, kept_time, size = 0, 0.0, 0.0, 0
    with open_plain(path) as lines:
        for line in lines:
            size += len(line)
            if found := BEGINNING.match(line):
                last_time = float(found["time"])
                kept_time = last_time if size <= num_bytes else kept_time
            if found := STEP.match(line):
                last_step = int(found["step"])
    return Forgotten(last_step, last_time, kept_time)
