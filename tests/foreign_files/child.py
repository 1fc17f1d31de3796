"""One command in a process of its own, which writes down where it writes and can be killed there.

The processes are forks of one that has imported everything. Python tells an audit hook of every
file that is opened for writing, made, renamed or removed, whoever calls for it; what libraries do
outside Python shows in the difference between two pictures of a folder.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.common.memory import family_mb, family_of
from benchmarks.common.rank_pool import PRELOAD

KILLED = 137
SECONDS_BETWEEN_LOOKS = 0.1
CHANGES = {
    "os.rename": (0, 1),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.remove": (0,),
    "os.mkdir": (0,),
    "os.rmdir": (0,),
    "os.truncate": (0,),
    "shutil.rmtree": (0,),
    "shutil.move": (0, 1),
    "shutil.copyfile": (1,),
}
"""Event -> which of its arguments are paths that change."""
multiprocessing.set_forkserver_preload([*PRELOAD, "and_dist.cli", "tests.foreign_files.child"])


@dataclass(frozen=True)
class Outcome:
    """Holds how a command ended, what it said, and which paths it touched, in order."""

    status: int
    said: str
    touched: tuple[Path, ...]
    exceeded: str = ""
    """The limit for which it was killed, "" for none."""


@dataclass(frozen=True)
class Limits:
    """What a command and all that it starts may take before they are killed."""

    seconds: float = 120.0
    mb: float = float("inf")


class Guard:
    """Kills a process and its descendants that take more than they may."""

    def __init__(self, pid: int, limits: Limits) -> None:
        self.exceeded = ""
        self._pid, self._limits = pid, limits
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def finish(self) -> str:
        """Stop watching; return the limit that was exceeded, or ""."""
        self._is_over.set()
        self._thread.join()
        return self.exceeded

    def _watch(self) -> None:
        deadline = time.monotonic() + self._limits.seconds
        while not self._is_over.wait(SECONDS_BETWEEN_LOOKS):
            if time.monotonic() > deadline:
                self.exceeded = f"it took more than {self._limits.seconds:.0f} s"
            elif family_mb(self._pid) > self._limits.mb:
                self.exceeded = f"it took more than {self._limits.mb:,.0f} MB"
            if self.exceeded:
                for pid in family_of(self._pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return


def run_command(
    command: tuple[str, ...],
    folder: Path,
    prepare: Callable[[], None] | None = None,
    kill_at: int | None = None,
    limits: Limits = Limits(),
) -> Outcome:
    """Run `and-dist ...` or `and-launch ...` in a folder; SIGKILL's like at the n-th change."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    arguments = (command, folder, prepare, kill_at, theirs)
    process = context.Process(target=_become, args=arguments)
    process.start()
    theirs.close()
    assert process.pid is not None
    guard = Guard(process.pid, limits)
    with os.fdopen(os.dup(ours.fileno()), errors="replace") as output:
        ours.close()
        said = output.read()
    process.join()
    exceeded = guard.finish()
    log = folder.with_name(f"{folder.name}.touched")
    *lines, last = log.read_text(errors="surrogateescape").split("\0") if log.exists() else [""]
    log.unlink(missing_ok=True)
    touched = dict.fromkeys(Path(line) for line in lines if line.startswith(f"{folder}/"))
    # The fork server loses the status of a child now and then, and says 255.
    status = int(last or process.exitcode or 0)
    return Outcome(KILLED if exceeded else status, said, tuple(touched), exceeded)


def _become(
    command: tuple[str, ...],
    folder: Path,
    prepare: Callable[[], None] | None,
    kill_at: int | None,
    out: Any,
) -> None:
    for number in (1, 2):
        os.dup2(out.fileno(), number)
    out.close()
    # Processes of the command's own begin from nothing, as they do for a user.
    multiprocessing.set_forkserver_preload([])
    os.chdir(folder)
    os.environ.update(OMP_NUM_THREADS="1", WANDB_SILENT="true", COLUMNS="400")
    if prepare is not None:
        prepare()
    end = _listen(folder, kill_at)
    program, *arguments = command
    sys.argv = [program, *arguments]
    if program == "and-dist":
        from and_dist.cli import main
    else:
        from launcher.cli import main
    status: object = 0
    try:
        main()
    except SystemExit as ended:
        status = ended.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    # At once: a child of multiprocessing would wait for pools that only a whole exit ends.
    end(status if isinstance(status, int) else 1)


def _listen(folder: Path, kill_at: int | None) -> Callable[[int], NoReturn]:
    """Note every change below the folder; end at once at the n-th. Gives a way to end."""
    log = os.open(f"{folder}.touched", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    count = 0

    def end(status: int) -> NoReturn:
        os.write(log, str(status).encode())
        os._exit(status)

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        for path in _changed(event, arguments):
            with contextlib.suppress(OSError, ValueError):
                absolute = os.path.abspath(os.fsdecode(path))
                if not absolute.startswith(f"{folder}/"):
                    continue
                if count == kill_at:
                    end(KILLED)
                count += 1
                os.write(log, os.fsencode(absolute) + b"\0")

    sys.addaudithook(hear)
    return end


def _changed(event: str, arguments: tuple[Any, ...]) -> list[Any]:
    """Return the paths that an event changes."""
    if event == "open":
        path, _, flags = arguments
        is_writing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return [path] if is_writing and not isinstance(path, int) else []
    return [arguments[at] for at in CHANGES.get(event, ()) if not isinstance(arguments[at], int)]
