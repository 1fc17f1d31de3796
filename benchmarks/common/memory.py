"""What a process holds, what it held at most, and the same of a whole family of processes."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MB = 1e6
STATUS = Path("/proc/self/status")
SECONDS_BETWEEN_LOOKS = 0.1
IDLE_TIMES = 10
"""As long as a look: it walks all pages, and whoever maps new ones meanwhile waits."""


def memory_mb() -> float:
    """Resident memory of this process."""
    return _of_file(STATUS, "VmRSS")


def peak_mb() -> float:
    """The most resident memory since the process started, or since forget_peak()."""
    return _of_file(STATUS, "VmHWM")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def available_mb() -> float:
    """What the machine has left for anyone."""
    return _of_file(Path("/proc/meminfo"), "MemAvailable")


def give_back_memory() -> None:
    """What is free goes back to the system: kept, it would serve what comes next unseen."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def extra_peak_mb(case: Callable[[], object]) -> float:
    """The most that a case holds above what was there before it."""
    give_back_memory()
    forget_peak()
    before = memory_mb()
    case()
    return max(0.0, peak_mb() - before)


def _of_file(file: Path, field: str) -> float:
    lines = file.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024 / MB


def extra_family_peak_mb(case: Callable[[], object]) -> float:
    """The same with all processes that it starts, as far as looks now and then can tell."""
    before = _family_mb(os.getpid())
    watch = FamilyWatch(os.getpid())
    case()
    return max(0.0, watch.finish() - before)


class FamilyWatch:
    """The most that a process and all that it started hold at once, looked at now and then."""

    def __init__(self, pid: int) -> None:
        self.peak_mb = 0.0
        self._pid = pid
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def finish(self) -> float:
        self._is_over.set()
        self._thread.join()
        return self.peak_mb

    def _watch(self) -> None:
        while not self._is_over.is_set():
            began = time.monotonic()
            self.peak_mb = max(self.peak_mb, _family_mb(self._pid))
            looking = time.monotonic() - began
            time.sleep(max(SECONDS_BETWEEN_LOOKS, IDLE_TIMES * looking))


def _family_mb(pid: int) -> float:
    return sum(map(_share_mb, _family_of(pid)))


def _family_of(pid: int) -> list[int]:
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [one for child in path.read_text().split() for one in _family_of(int(child))]
    return found


def _share_mb(pid: int) -> float:
    """Pages that several processes share count by this one's share (PSS)."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return int(text.partition("\nPss:")[2].split()[0]) * 1024 / MB
    return 0.0
