"""Run tests of a copied project, each time in a process forked from one that has loaded torch.

`python -m tests.mutants.trial_server` is started in the copy and with it first on PYTHONPATH. It
loads libraries, but no module of the project: every trial imports these anew, as they are then. It
reads one trial a line from its input, and writes what came of it, a line each: both are JSON.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from typing import Any, TextIO

import psutil

LIBRARIES = ("faiss.contrib.torch_utils", "hypothesis", "pytest", "safetensors.torch", "yaml")
SECONDS_BETWEEN_LOOKS, SECONDS_BETWEEN_SUMS = 0.05, 2.0
LEAST_WORK, LONGEST_PAUSE = 2.0, 60.0
"""CPU seconds that tests take within these seconds, if they do not hang: ranks that wait for each
other take a little too."""
TIMED_OUT = "timed out"


def main() -> None:
    """Serve trials until the input ends; SIGTERM ends the tests that run, too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for library in LIBRARIES:
        __import__(library)
    for line in sys.stdin:
        trial = json.loads(line)
        replies.write(json.dumps(_try(trial)) + "\n")
        replies.flush()


def _try(trial: dict[str, Any]) -> dict[str, Any]:
    """Fork, run the tests, and kill whatever of them is left; tell what came of it."""
    began = time.monotonic()
    with open(trial["log"], "w") as log:
        child = os.fork()
        if child == 0:
            _run_tests(trial["tests"], log, trial["forks"])
        try:
            status, work = _wait(child, trial["seconds"])
        finally:
            _kill_group(child)
    return {"status": status, "work": work, "seconds": time.monotonic() - began}


def _wait(child: int, most_work: float) -> tuple[int | str, float]:
    """The exit status of the tests and the CPU seconds that they took.

    They are killed where they take more, or none for a while: on a busy machine, time alone would
    tell nothing.
    """
    looked, marked, since = 0.0, 0.0, time.monotonic()
    work = 0.0
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), work
        now = time.monotonic()
        if now - looked > SECONDS_BETWEEN_SUMS:
            looked, work = now, max(work, _work_of(child))
        if work - marked > LEAST_WORK:
            marked, since = work, now
        if work > most_work or now - since > LONGEST_PAUSE:
            _kill_group(child)
            os.waitpid(child, 0)
            return TIMED_OUT, work
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _work_of(child: int) -> float:
    """CPU seconds of a process and of all below it, those that have ended included."""
    work = 0.0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(child)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                work += sum(process.cpu_times()[:4])
    return work


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _run_tests(tests: list[str], log: TextIO, forks: bool) -> None:
    """Become pytest. With `forks`, the ranks are forked from here, where libraries are loaded, and
    not from a server of their own, which would take seconds to load them."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    for theirs, ours in ((null, 0), (log.fileno(), 1), (log.fileno(), 2)):
        os.dup2(theirs, ours)
    if forks:
        fork, get_context = multiprocessing.get_context("fork"), multiprocessing.get_context
        # The rank pool asks for a fork server; a fork of this process has torch loaded already.
        multiprocessing.get_context = (  # type: ignore[assignment]
            lambda method=None: fork if method == "forkserver" else get_context(method)
        )
    import pytest

    import and_dist

    assert os.path.commonpath([and_dist.__file__, os.getcwd()]) == os.getcwd()
    os._exit(int(pytest.main(["-x", "-q", "-m", "not nightly", "-rfE", *tests])))


if __name__ == "__main__":
    main()
