"""Run and-launch as a user does."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from launcher.status import read_training
from slurm.testcluster.cluster import PATIENCE
from tests.end_to_end.processes import pids_of


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start and-launch in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "launcher", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def launch(*arguments: object) -> tuple[int, str]:
    """Return and-launch's exit code and what it said."""
    process = start(*arguments)
    said, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, said


def launch_on_terminal(typed: str, *arguments: object) -> tuple[int, str]:
    """Return and-launch's exit code and the screen of a terminal on which somebody typed."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    os.write(ours, typed.encode())
    said = b""
    with contextlib.suppress(OSError):  # how a terminal ends that nobody holds any more
        while part := os.read(ours, 4096):
            said += part
    os.close(ours)
    return process.wait(PATIENCE), said.decode().replace("\r\n", "\n")


def wait_for_step(run: Path, step: int) -> None:
    """Wait until a run has logged a step."""
    deadline = time.monotonic() + PATIENCE
    while read_training(run)[0].get("step", {}).get("step", 0) < step:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ranks_of(run: Path) -> list[int]:
    """Return the processes that train a run."""
    return pids_of(rf"-m and_dist train --config {run}/jobs")
