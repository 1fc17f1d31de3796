"""Processes that end without taking their modules apart, but with all that Python promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

pytestmark = pytest.mark.whole_run

PROGRAM = """
import atexit, sys, threading, time
from and_dist.utils.exits import run_and_leave

class Kept:
    def __del__(self):
        print("taken apart")

kept = Kept()

def late():
    time.sleep(0.1)
    print("thread done")

def main():
    atexit.register(print, "registered")
    threading.Thread(target=late).start()
    print("main done")
    {last}

run_and_leave(main)
"""


def run(last: str, stdout: IO[str] | int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM.format(last=last)]
    pipe = subprocess.PIPE
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return subprocess.run(command, text=True, env=buffered, stdout=stdout, stderr=pipe)


@pytest.mark.parametrize(
    ("last", "status"),
    [
        ("", 0),
        ("sys.exit()", 0),
        ("sys.exit(75)", 75),
        ("sys.exit('a sentence')", 1),
        ("raise KeyError('x')", 1),
        ("raise KeyboardInterrupt", 130),
    ],
)
def test_the_exit_code_is_pythons_and_all_that_is_promised_is_done(last: str, status: int) -> None:
    done = run(last)
    assert done.returncode == status
    assert done.stdout == "main done\nthread done\nregistered\n"
    assert ("a sentence" in done.stderr) == ("sentence" in last)
    assert ("Traceback" in done.stderr) == last.startswith("raise")


def test_output_that_cannot_be_written_is_a_failure() -> None:
    with Path("/dev/full").open("w") as full:
        done = run("", stdout=full)
    assert done.returncode == 1
    assert "could not be written: [Errno 28] No space left on device" in done.stderr
