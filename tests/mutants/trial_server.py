"""Run tests of a copied project, each time in a process forked from one that has loaded torch.

`python -m tests.mutants.trial_server` is started in the copy and with it first on PYTHONPATH. It
loads libraries, but no module of the project: every trial imports these anew, as they are then. It
reads one trial a line from its input, and writes what came of it, a line each: both are JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from typing import Any, TextIO

LIBRARIES = ("faiss.contrib.torch_utils", "hypothesis", "pytest", "safetensors.torch", "yaml")
SECONDS_BETWEEN_LOOKS = 0.05
TIMED_OUT = "timed out"


def main() -> None:
    """Serve trials until the input ends; SIGTERM ends the tests that run, too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for library in (*LIBRARIES, "torch.distributed.checkpoint", "torch.distributed.tensor"):
        __import__(library)
    for line in sys.stdin:
        trial = json.loads(line)
        replies.write(json.dumps(_try(trial)) + "\n")
        replies.flush()


def _try(trial: dict[str, Any]) -> dict[str, Any]:
    """Fork, run the tests, and kill whatever of them is left."""
    began = time.monotonic()
    with open(trial["log"], "w") as log:
        child = os.fork()
        if child == 0:
            _run_tests(trial["tests"], log, trial["forks"])
        try:
            status = _wait(child, began + trial["seconds"])
        finally:
            _kill_group(child)
    return {"status": status, "seconds": time.monotonic() - began}


def _wait(child: int, until: float) -> int | str:
    """The exit status of the tests, or that they were killed at the limit."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            _kill_group(child)
            os.waitpid(child, 0)
            return TIMED_OUT
        time.sleep(SECONDS_BETWEEN_LOOKS)


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
        multiprocessing.get_context = (  # type: ignore[assignment]
            lambda method=None: fork if method == "forkserver" else get_context(method)
        )
    import pytest

    import and_dist

    assert os.path.commonpath([and_dist.__file__, os.getcwd()]) == os.getcwd()
    os._exit(int(pytest.main(["-x", "-q", "-m", "not ci and not nightly", "-rfE", *tests])))


if __name__ == "__main__":
    main()
