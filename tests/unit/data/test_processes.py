from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from and_dist.data.processes import open_processes


def parent_and_threads() -> tuple[int, list[str]]:
    return os.getppid(), [thread.name for thread in threading.enumerate()]


def test_a_process_is_no_fork_of_its_parent() -> None:
    """A fork taken while DALI's or a reader's thread holds a lock can hang: seen once in 15 runs of
    the suite, in the packing of an archive after other tests had loaded images."""
    with open_processes(1) as processes:
        parent, threads = processes.submit(parent_and_threads).result(timeout=60)
    assert parent != os.getpid()
    assert threads == ["MainThread", "parent watch"]


WAIT_WITH_A_WORKER = """
import os, time
from and_dist.data.processes import open_processes
if __name__ == "__main__":
    processes = open_processes(1)
    print(processes.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""


@pytest.mark.whole_run
def test_no_process_outlives_a_killed_parent() -> None:
    command = [sys.executable, "-c", WAIT_WITH_A_WORKER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = Path("/proc") / parent.stdout.readline().strip()
        assert worker.exists()
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while worker.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not worker.exists()
