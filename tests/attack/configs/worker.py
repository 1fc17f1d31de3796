"""A process that has imported the readers, and carries out each attempt in a fork of its own.

A fork takes some milliseconds, an import of torch seconds. The fork is killed where it takes more
time or memory than an attempt may.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from typing import Any

MB = 1_000_000
LIMITS = {False: (2.0, 60.0, 300.0), True: (60.0, 240.0, 6000.0)}
"""Seconds of a core and of a clock, and MB more than the worker has, by whether an attempt builds
an encoder."""


class Worker:
    """A worker process as its user sees it."""

    def __init__(self, weight: str) -> None:
        self._weight = weight
        self._start()

    def attempt(self, given: dict[str, Any]) -> str:
        """Return what an attempt broke, or ""."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(given) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._start()
            return "the worker ended"
        return str(json.loads(line))

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()", self._weight],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


_of_thread = threading.local()


def attempt(given: dict[str, Any], weight: str = "light") -> str:
    """Carry out an attempt by this thread's worker; return what it broke, or ""."""
    if not hasattr(_of_thread, weight):
        setattr(_of_thread, weight, Worker(weight))
    worker: Worker = getattr(_of_thread, weight)
    return worker.attempt(given)


def main() -> None:
    """Carry out attempts until there are no more."""
    heavy = sys.argv[1] == "heavy"
    if heavy:
        import tests.attack.configs.heavy_doors as doors
    else:
        import tests.attack.configs.doors as doors  # type: ignore[no-redef] # one of two
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin:
        json.dump(_in_fork(doors.attempt, json.loads(line), heavy), answers)
        answers.write("\n")
        answers.flush()


def _in_fork(carry_out: Any, given: dict[str, Any], heavy: bool) -> str:
    """Return what an attempt broke, carried out in a fork."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        _limit(heavy)
        said = carry_out(given)
        os.write(theirs, said.encode(errors="replace")[:4000])
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, errors="replace") as pipe:
        said = pipe.read()
    _, status, _ = os.wait4(pid, 0)
    if os.WIFSIGNALED(status):
        cpu_seconds, wall_seconds, _ = LIMITS[heavy]
        number = os.WTERMSIG(status)
        ways = {
            signal.SIGPROF: f"it took more than {cpu_seconds:g} s of a core",
            signal.SIGALRM: f"it took more than {wall_seconds:g} s",
        }
        return ways.get(number, f"it was ended by signal {number}")
    return said if status == 0 else f"it ended with status {os.waitstatus_to_exitcode(status)}"


def _limit(heavy: bool) -> None:
    """Limit time and memory of this process, beyond what it has already."""
    cpu_seconds, wall_seconds, more_mb = LIMITS[heavy]
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    most = int(pages * resource.getpagesize() + more_mb * MB)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
