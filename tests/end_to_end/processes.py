"""Runs as users start them, to be disturbed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from and_dist.cli import main
from benchmarks.common.rank_pool import PRELOAD, free_port
from slurm.testcluster.cluster import PATIENCE

multiprocessing.set_forkserver_preload(PRELOAD)
DEBUG = ("train", "--config", "configs/debug.yaml")
ENDLESS = ("curriculum.epochs=1000", "optim.milestones=[500]", "evaluation.baselines=false")


class Started:
    """One process of and-dist, forked from one that has imported everything: an import takes five
    seconds of a core, and the tests start some hundred. The rest is as a shell would do it. Only
    where torchrun starts the processes do they begin from nothing."""

    def __init__(
        self,
        arguments: list[str],
        environment: dict[str, str],
        program: Callable[[], None] = main,
        terminal: int | None = None,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        ours, theirs = os.pipe()
        out = _Inherited(theirs if terminal is None else terminal)
        self._process = context.Process(target=_become, args=(program, arguments, environment, out))
        self._process.start()
        os.close(theirs)
        self.stdout = os.fdopen(ours, encoding="utf-8", errors="replace")
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutError(f"process {self.pid} has not ended in {timeout} s")
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, None]:
        """All it has said, once it has ended."""
        with ThreadPoolExecutor(1) as reader:
            said = reader.submit(self.stdout.read)
            try:
                self.wait(timeout)
            except TimeoutError:
                self.kill()
                raise
            return said.result(timeout), None


class _Inherited:
    """An open file that the process begins with."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Callable[[Any], int], tuple[Any]]:
        return _take, (DupFd(self._number),)


def _take(passed: Any) -> int:
    return int(passed.detach())


def _become(
    program: Callable[[], None], arguments: list[str], environment: dict[str, str], out: int
) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    for number in (1, 2):
        os.dup2(out, number)
    os.close(out)
    sys.argv = ["and-dist", *arguments]
    program()


def start(
    *arguments: object,
    program: Callable[[], None] = main,
    terminal: int | None = None,
    **environment: object,
) -> Started:
    """One process of and-dist, or of another program that takes its arguments from sys.argv."""
    told = {key: str(value) for key, value in environment.items()}
    environ = {**os.environ, "OMP_NUM_THREADS": "1", **told}
    return Started([*map(str, arguments)], environ, program, terminal)


def start_ranks(size: int, *arguments: object, program: Callable[[], None] = main) -> list[Started]:
    """As torchrun would, without its agent."""
    port = free_port()
    return [
        start(
            *arguments,
            program=program,
            RANK=rank,
            WORLD_SIZE=size,
            LOCAL_RANK=rank,
            LOCAL_WORLD_SIZE=size,
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in range(size)
    ]


def finish(process: Started) -> tuple[int, str]:
    """Exit status and what it said."""
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


def train(*arguments: object) -> str:
    """A run to its end."""
    status, output = finish(start(*DEBUG, *arguments))
    assert status == 0, output
    return output


def train_interrupted(root: Path, *options: object) -> Path:
    """A run that is killed, gone on with, told to end, and gone on with to its end."""
    command, run = (*DEBUG, f"run.root={root}", *options), root / "debug"
    for number, at_step in ((signal.SIGKILL, 8), (signal.SIGTERM, 22)):
        process = start(*command)
        wait_until(lambda at=at_step: steps(run) >= at, process)
        process.send_signal(number)
        process.wait(PATIENCE)
    train(f"run.root={root}", *options)
    return run


def wait_until(is_time: Callable[[], bool], process: Started | subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_time():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)


def events(folder: Path) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl so far."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def steps(folder: Path) -> int:
    return max((event.get("step", 0) for event in events(folder)), default=0)


def starts(folder: Path) -> list[dict[str, Any]]:
    path = folder / "environment.json"
    return list(json.loads(path.read_text())) if path.exists() else []


def fill_up(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def pids_of(pattern: str) -> list[int]:
    """Processes whose command line has this in it, on all nodes of a test cluster too."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if re.search(pattern, command) and int(path.name) != os.getpid():
            found.append(int(path.name))
    return sorted(found)
