"""Let a command's calls fail on a folder's files: its n-th change, or all from then on.

faults.c is compiled once and loaded before the C library. It fails calls of all processes that a
command starts, at all files below the folder and nowhere else, so that neither the start of Python
nor a socket is struck.
"""

from __future__ import annotations

import atexit
import errno
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")
CHANGES = "mwfrot"
"""All kinds of calls: make, write, flush, remove or rename, open to write, truncate."""
KINDS = {
    errno.ENOSPC: "mw",
    errno.EDQUOT: "mwf",
    errno.EROFS: "mwrot",
    errno.EIO: "mwfrt",
}
"""The calls that give each error: removing a file needs no room."""
ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Fault:
    """Names the calls that fail: the `first` and all after it, or that one alone."""

    error: int
    """An errno; below zero a signal that the process gets in the call."""
    first: int = 1
    is_once: bool = False
    place: str = ""
    """The beginning of the paths it strikes, below the scene's folder, or an absolute one."""
    kinds: str = ""
    rank: str = ""

    def __str__(self) -> str:
        name = errno.errorcode[self.error] if self.error > 0 else f"signal {-self.error}"
        when = f"at change {self.first}" + ("" if self.is_once else " and after")
        where = f" of {self.place}" if self.place else ""
        rank = f" by rank {self.rank}" if self.rank else ""
        return f"{name} {when}{where}{rank} ({self.letters})"

    @property
    def letters(self) -> str:
        """Return the kinds of calls that fail."""
        return self.kinds or KINDS.get(self.error, CHANGES)


@dataclass(frozen=True)
class Injection:
    """Holds what a command is started with, and what was struck."""

    fault: Fault
    folder: Path

    @property
    def _log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.struck")

    @property
    def _count(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.count")

    def environment(self) -> dict[str, str]:
        """Return the variables of the command."""
        self._count.write_bytes(bytes(8))
        self._log.unlink(missing_ok=True)
        fault = self.fault
        return {
            "FAULT_ROOTS": str(self.folder / fault.place) + ("" if fault.place else "/"),
            "FAULT_KINDS": fault.letters,
            "FAULT_FIRST": str(fault.first),
            "FAULT_LAST": str(fault.first) if fault.is_once else "",
            "FAULT_ERRNO": str(fault.error),
            "FAULT_RANK": fault.rank,
            "FAULT_COUNT": str(self._count),
            "FAULT_LOG": str(self._log),
        }

    def num_calls(self) -> int:
        """Return how many calls there were of the kinds that could fail."""
        return int.from_bytes(self._count.read_bytes(), "little")

    def struck(self) -> list[str]:
        """Return the paths of the calls that failed, in order."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [line.split(" ", 2)[2] for line in lines]


def count_calls(folder: Path, error: int) -> Injection:
    """Return what counts the calls that an error could strike, and strikes none."""
    return Injection(replace(Fault(error), first=2**60), folder)


def can_inject() -> bool:
    """Return whether this machine can compile the library."""
    return shutil.which("cc") is not None


_lock = threading.Lock()


def library() -> Path:
    """Return the compiled library."""
    with _lock:
        return _compiled()


@cache
def _compiled() -> Path:
    folder = tempfile.mkdtemp(prefix="and-dist-faults-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = Path(folder, "faults.so")
    flags = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror")
    subprocess.run(["cc", *flags, "-o", target, SOURCE, "-ldl"], check=True)
    return target
