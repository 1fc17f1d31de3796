"""One job at a time holds a lock: by the kernel on one machine, by signs of life among machines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from and_dist.distributed.launch_env import boot_id, pid_namespace, process_start
from and_dist.runs.lock import SECONDS_UNTIL_STALE, hold_lock, is_held, is_lock
from and_dist.utils.owned_files import NotOursError

HOLD = """
import sys, signal
from pathlib import Path
from and_dist.runs.lock import hold_lock
with hold_lock(Path(sys.argv[1]), "trained", "wait"):
    print("held", flush=True)
    signal.pause()
"""
CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
OLD = {"host": os.uname().nodename, "pid": 1, "process_start": 0.5, "job": None, "since": "then"}
"""A lock as earlier revisions wrote it."""


@contextmanager
def holder(folder: Path, *within: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of a folder."""
    command = [*within, sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.read()  # ends when a process within a container has ended too


def try_to_hold(folder: Path) -> None:
    with hold_lock(folder, "trained", "wait for it"):
        pass


def write_lock(folder: Path, content: Any, age: float = 0.0) -> Path:
    lock = folder / "lock"
    lock.write_text(content if isinstance(content, str) else json.dumps(content))
    os.utime(lock, (time.time() - age, time.time() - age))
    return lock


@pytest.mark.whole_run
@pytest.mark.skipif(os.getuid() != 0, reason="only root makes a PID namespace like this")
def test_a_container_on_this_machine_is_seen_and_its_end_too(tmp_path: Path) -> None:
    with holder(tmp_path, *CONTAINER):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == 1
        assert is_held(tmp_path)
        with pytest.raises(RuntimeError, match="is being trained by process 1 on "):
            try_to_hold(tmp_path)
    assert is_lock(tmp_path / "lock")  # killed, it left its lock behind
    try_to_hold(tmp_path)
    assert not (tmp_path / "lock").exists()


@pytest.mark.whole_run
def test_a_silent_holder_that_the_kernel_knows_keeps_its_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        os.utime(tmp_path / "lock", (0, 0))
        with pytest.raises(RuntimeError, match="is being trained by process"):
            try_to_hold(tmp_path)


@pytest.mark.whole_run
def test_a_forked_child_does_not_keep_the_lock_of_its_parent(tmp_path: Path) -> None:
    forks = "import os; os.fork() or (print('child', flush=True), signal.pause())"
    command = [sys.executable, "-c", HOLD.replace('print("held"', f"{forks}; print('held'")]
    process = subprocess.Popen([*command, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        # A child that has not come as far as its first line has its parent's descriptor still.
        assert {process.stdout.readline() for _ in range(2)} == {b"child\n", b"held\n"}
        child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        process.kill()
        process.wait()
        assert process_start(child) is not None
        try_to_hold(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_a_lock_of_this_machine_that_the_kernel_has_released_is_taken_over(tmp_path: Path) -> None:
    of_a_container = OLD | {"boot": boot_id(), "pid_namespace": 1, "pid": os.getpid()}
    write_lock(tmp_path, of_a_container | {"device": tmp_path.stat().st_dev})
    try_to_hold(tmp_path)
    # By another mount of the same files the kernel may know other locks.
    write_lock(tmp_path, of_a_container | {"device": -1})
    with pytest.raises(RuntimeError, match="is being trained"):
        try_to_hold(tmp_path)


def test_a_process_of_this_namespace_that_is_gone_has_left_its_lock(tmp_path: Path) -> None:
    here = {"boot": boot_id(), "pid_namespace": pid_namespace(), "device": -1}
    write_lock(tmp_path, OLD | here | {"pid": os.getpid()})  # its number has come round
    try_to_hold(tmp_path)


def test_a_lock_of_an_earlier_revision_is_understood(tmp_path: Path) -> None:
    alive = {"pid": os.getpid(), "process_start": process_start(os.getpid())}
    write_lock(tmp_path, OLD | alive, age=SECONDS_UNTIL_STALE + 10)
    with pytest.raises(RuntimeError, match=f"process {os.getpid()} on .*since then"):
        try_to_hold(tmp_path)
    # A process that cannot be found may live in a container.
    write_lock(tmp_path, OLD)
    with pytest.raises(RuntimeError, match="left behind 120 s after its last sign of life"):
        try_to_hold(tmp_path)
    write_lock(tmp_path, OLD, age=SECONDS_UNTIL_STALE + 10)
    try_to_hold(tmp_path)


def test_signs_of_life_decide_about_another_machine(tmp_path: Path) -> None:
    elsewhere = OLD | {"host": "elsewhere", "boot": "another", "pid_namespace": 7, "device": 1}
    write_lock(tmp_path, elsewhere)
    assert is_held(tmp_path)
    with pytest.raises(RuntimeError, match="process 1 on elsewhere"):
        try_to_hold(tmp_path)
    write_lock(tmp_path, elsewhere, age=SECONDS_UNTIL_STALE + 10)
    assert not is_held(tmp_path)
    try_to_hold(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\0\1\2",
        "me",
        "[]",
        "{}",
        '{"host": "here"}',
        json.dumps(OLD | {"pid": "4"}),
        json.dumps(OLD | {"host": 3}),
        json.dumps(OLD | {"process_start": "noon"}),
        json.dumps(OLD | {"job": ["x"]}),
        json.dumps([OLD]),
        "[" * 100_000,
    ],
)
@pytest.mark.parametrize("age", [0.0, 1e6])
def test_a_file_that_is_no_lock_is_named_and_stays(
    tmp_path: Path, content: str, age: float
) -> None:
    lock = write_lock(tmp_path, content, age)
    assert not is_held(tmp_path)
    with pytest.raises(NotOursError, match=r"lock exists and was not written by and-dist: move"):
        try_to_hold(tmp_path)
    assert lock.read_text() == content
