"""What ranks said: RUN/logs/rank-R.log, one file a rank, appended over starts."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

MARK = "--- "
TRACEBACK = "Traceback (most recent call last):"
LAST_LINES = 20
LOST_ANOTHER = re.compile(
    r"[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|NCCL|[Ss]ocket|gloo|Dist\w+Error"
)


class Follower:
    """A file shown as it grows, from where it ended when this began."""

    def __init__(self, path: Path, out: TextIO = sys.stdout) -> None:
        self._path, self._out = path, out
        self._at = path.stat().st_size if path.exists() else 0

    def show_more(self) -> None:
        """Whole lines only."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            more = file.read()
        more = more[: more.rfind(b"\n") + 1]
        self._at += len(more)
        if more:
            self._out.write(more.decode(errors="replace"))
            self._out.flush()


def read_last_start(log: Path) -> list[str]:
    """What a rank has said since its last start; nothing of a rank that never came up."""
    if not log.exists():
        return []
    lines = log.read_text(errors="replace").splitlines()
    marks = [at for at, line in enumerate(lines) if line.startswith(MARK)]
    return lines[marks[-1] :] if marks else lines


def read_failure(log: Path) -> list[str]:
    """The last traceback of a rank's last start, or the last lines it wrote."""
    lines = read_last_start(log)
    found = [at for at, line in enumerate(lines) if TRACEBACK in line]
    return lines[found[-1] :] if found else lines[-LAST_LINES:]


def failure_priority(run: Path) -> Callable[[int], tuple[bool, bool, int]]:
    """A key that puts first, of ranks that failed, the one that did so by itself: the others
    lost their connection to it, which is what the key begins with."""

    def key(rank: int) -> tuple[bool, bool, int]:
        lines = read_failure(run / "logs" / f"rank-{rank}.log")
        has_traceback = any(TRACEBACK in line for line in lines)
        return bool(LOST_ANOTHER.search(" ".join(lines[-3:]))), not has_traceback, rank

    return key


def read_tail(log: Path, num_lines: int) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-num_lines:] if log.exists() else []


def list_ranks(run: Path) -> list[int]:
    """Those that have a log."""
    names = [re.fullmatch(r"rank-(\d+)\.log", path.name) for path in (run / "logs").glob("*.log")]
    return sorted(int(name.group(1)) for name in names if name)
