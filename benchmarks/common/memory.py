"""Measure the memory of a process, now and at its peak, and of a process with its descendants."""

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
"""The least pause between two looks, in durations of a look. A look walks all pages of a process,
which waits meanwhile if it maps new ones."""


def memory_mb() -> float:
    """Return the resident memory of this process."""
    return _of_file(STATUS, "VmRSS")


def peak_mb() -> float:
    """Return the most resident memory since the process started, or since forget_peak()."""
    return _of_file(STATUS, "VmHWM")


def forget_peak() -> None:
    """Reset the peak of the resident memory."""
    Path("/proc/self/clear_refs").write_text("5")


def available_mb() -> float:
    """Return the memory that the machine has available for new processes."""
    return _of_file(Path("/proc/meminfo"), "MemAvailable")


def give_back_memory() -> None:
    """Return free memory to the system: the next case would use it, and so hide what it needs
    itself."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def extra_peak_mb(case: Callable[[], object]) -> float:
    """Return the most memory that a case holds above the memory in use before it."""
    give_back_memory()
    forget_peak()
    before = memory_mb()
    case()
    return max(0.0, peak_mb() - before)


def _of_file(file: Path, field: str) -> float:
    lines = file.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024 / MB


def extra_family_peak_mb(case: Callable[[], object]) -> float:
    """Return the same for this process and all that the case starts, as far as periodic looks can
    tell."""
    before = family_mb(os.getpid())
    watch = FamilyWatch(os.getpid())
    case()
    return max(0.0, watch.finish() - before)


class FamilyWatch:
    """Record the most memory that a process and its descendants hold at once, in periodic looks."""

    def __init__(self, pid: int) -> None:
        """Start to look in a thread."""
        self.peak_mb = 0.0
        self._pid = pid
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def finish(self) -> float:
        """Stop looking and return the peak."""
        self._is_over.set()
        self._thread.join()
        return self.peak_mb

    def _watch(self) -> None:
        while not self._is_over.is_set():
            began = time.monotonic()
            self.peak_mb = max(self.peak_mb, family_mb(self._pid))
            looking = time.monotonic() - began
            time.sleep(max(SECONDS_BETWEEN_LOOKS, IDLE_TIMES * looking))


def family_mb(pid: int) -> float:
    """Return the memory of a process and its descendants."""
    return sum(map(_share_mb, family_of(pid)))


def family_of(pid: int) -> list[int]:
    """Return the numbers of a process and its descendants."""
    found = [pid]
    with suppress(OSError):  # it may end meanwhile
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [one for child in path.read_text().split() for one in family_of(int(child))]
    return found


def _share_mb(pid: int) -> float:
    """Return the proportional share of memory (PSS): pages that processes share are divided among
    them."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return int(text.partition("\nPss:")[2].split()[0]) * 1024 / MB
    return 0.0
