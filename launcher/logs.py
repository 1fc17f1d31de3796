"""Read the logs of ranks, RUN/logs/rank-R.log: one file a rank, appended to by every start."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from and_dist.distributed.launch_env import LOST_ANOTHER
from and_dist.utils.formatting import safe_lines
from and_dist.utils.plain_files import open_plain

MARK = "--- "
"""The beginning of the line that opens each start in a log."""
TRACEBACK = "Traceback (most recent call last):"
MOST_BYTES = 4_000_000
"""The most bytes of a log that are looked at, from its end."""
LAST_LINES = 20
"""The number of lines that are shown of a failure without a traceback."""


class Follower:
    """Print a file as it grows, from its end at the time of construction."""

    def __init__(self, path: Path, out: TextIO = sys.stdout) -> None:
        """Remember where the file ends now."""
        self._path, self._out = path, out
        self._at = path.stat().st_size if path.exists() else 0

    def show_more(self) -> None:
        """Print the whole lines that were added since the last call."""
        if not self._path.exists():
            return
        with open_plain(self._path) as file:
            file.seek(self._at)
            more = file.read()
        more = more[: more.rfind(b"\n") + 1]
        self._at += len(more)
        if more:
            self._out.write(safe_lines(more.decode(errors="replace").expandtabs()))
            self._out.flush()


def read_last_start(log: Path) -> list[str]:
    """Return the lines that a rank has written since its last start; none if it has no log."""
    if not log.exists():
        return []
    lines = _last_lines(log)
    marks = [at for at, line in enumerate(lines) if line.startswith(MARK)]
    return lines[marks[-1] :] if marks else lines


def read_failure(log: Path) -> list[str]:
    """Return the last traceback of a rank's last start, or else the last lines it wrote."""
    lines = read_last_start(log)
    found = [at for at, line in enumerate(lines) if TRACEBACK in line]
    return lines[found[-1] :] if found else lines[-LAST_LINES:]


def failure_priority(run: Path) -> Callable[[int], tuple[bool, bool, int]]:
    """Return a sort key that puts the rank first that failed by itself.

    The other ranks fail because they lose their connection to it; whether a rank did is the first
    item of its key.
    """

    def key(rank: int) -> tuple[bool, bool, int]:
        lines = read_failure(run / "logs" / f"rank-{rank}.log")
        has_traceback = any(TRACEBACK in line for line in lines)
        return bool(LOST_ANOTHER.search(" ".join(lines[-3:]))), not has_traceback, rank

    return key


def read_tail(log: Path, num_lines: int) -> list[str]:
    """Return the last lines of a log; none if it does not exist."""
    return _last_lines(log)[-num_lines:] if log.exists() else []


def _last_lines(log: Path) -> list[str]:
    """Return the lines of a log, of a long one the last megabytes."""
    with open_plain(log) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - MOST_BYTES))
        return file.read(MOST_BYTES).decode(errors="replace").splitlines()


def list_ranks(run: Path) -> list[int]:
    """Return the ranks that have a log."""
    names = [re.fullmatch(r"rank-(\d+)\.log", path.name) for path in (run / "logs").glob("*.log")]
    return sorted(int(name.group(1)) for name in names if name)
