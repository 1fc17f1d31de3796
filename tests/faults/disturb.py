"""A run under torchrun, the moments to wait for in it, and what can be done to it then."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RANKS = 2
SECONDS_A_START = 60
SECONDS_TO_START = 3
"""Seconds: a rank begins in two thirds of them."""
HUNG = -1
"""In place of an exit status."""
SETTINGS = (
    "data.limit=400",
    "data.limit_test=200",
    "optim.batch_size=32",
    "curriculum.epochs=2",
    "optim.milestones=[1]",
    "run.threads=1",
    "run.keep=2",
    "run.save_minutes=0.005",
)


class Run:
    """A torchrun agent and its workers, training in a folder."""

    def __init__(self, root: Path, name: str) -> None:
        self.folder = root / name
        self.log = root / f"{name}.log"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        self._command = [
            *launcher,
            f"--nproc-per-node={RANKS}",
            "--max-restarts=2",
            "-m",
            "and_dist",
            "train",
            "--config",
            "configs/debug.yaml",
            f"run.root={root}",
            f"name={name}",
            *SETTINGS,
        ]
        self.agent: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.agent = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def workers(self) -> list[int]:
        assert self.agent is not None
        children = Path(f"/proc/{self.agent.pid}/task/{self.agent.pid}/children")
        pids = [int(pid) for pid in children.read_text().split()] if children.exists() else []
        return [pid for pid in pids if b"and_dist" in _command_of(pid)]

    def is_running(self) -> bool:
        return self.agent is not None and self.agent.poll() is None

    def wait(self) -> int:
        """Exit status; whatever is left is killed first if it takes too long."""
        assert self.agent is not None
        try:
            return self.agent.wait(SECONDS_A_START)
        except subprocess.TimeoutExpired:
            self.kill_all()
            self.agent.wait()
            return HUNG

    def kill_all(self) -> bool:
        assert self.agent is not None
        return self.is_running() and _signal([self.agent.pid, *self.workers()], signal.SIGKILL)

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def num_starts(self) -> int:
        path = self.folder / "environment.json"
        return len(json.loads(path.read_text())) if path.exists() else 0

    def last_step(self) -> int:
        return max((event.get("step", 0) for event in self.events()), default=0)


def _command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _signal(pids: list[int], *numbers: signal.Signals) -> bool:
    """False if there was nobody left to hear one."""
    heard = False
    for pid in pids:
        for number in numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                heard = True
    return heard


def kill_worker(run: Run, chance: random.Random) -> bool:
    workers = run.workers()
    return bool(workers) and _signal([chance.choice(workers)], signal.SIGKILL)


def kill_all(run: Run, chance: random.Random) -> bool:
    del chance
    return run.kill_all()


def end_agent(run: Run, chance: random.Random) -> bool:
    del chance
    assert run.agent is not None
    return run.is_running() and _signal([run.agent.pid], signal.SIGTERM)


def warn_workers(run: Run, chance: random.Random) -> bool:
    """As a scheduler does before a time limit."""
    return _signal(run.workers(), chance.choice([signal.SIGUSR1, signal.SIGUSR2]))


def freeze_worker(run: Run, chance: random.Random) -> bool:
    workers = run.workers()
    if not workers:
        return False
    pid = chance.choice(workers)
    _signal([pid], signal.SIGSTOP)
    time.sleep(chance.uniform(0.5, 4))
    return _signal([pid], signal.SIGCONT)


def kill_agent(run: Run, chance: random.Random) -> bool:
    """Its workers find themselves alone, and are to end by themselves."""
    del chance
    assert run.agent is not None
    workers = run.workers()
    if not run.is_running() or not _signal([run.agent.pid], signal.SIGKILL):
        return False
    deadline = time.monotonic() + SECONDS_A_START
    while any(_command_of(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers live on without their agent"
        time.sleep(0.05)
    return True


FAULTS: dict[str, Callable[[Run, random.Random], bool]] = {
    "SIGKILL to a worker": kill_worker,
    "SIGKILL to all": kill_all,
    "SIGTERM to the agent": end_agent,
    "SIGUSR to the workers": warn_workers,
    "SIGSTOP for a while": freeze_worker,
    "SIGKILL to the agent": kill_agent,
}
"""Each says whether it has struck."""


def during_training(run: Run, chance: random.Random) -> bool:
    wanted = chance.randint(1, 70)
    return _wait(run, lambda: any(e.get("step", 0) >= wanted for e in run.events()))


def during_saving(run: Run, chance: random.Random) -> bool:
    earlier = chance.randint(0, 12)
    names: set[str] = set()

    def is_saving() -> bool:
        names.update(path.name for path in (run.folder / "checkpoints").glob(".*.building"))
        return len(names) > earlier

    return _wait(run, is_saving, 0.0005)


def during_evaluation(run: Run, chance: random.Random) -> bool:
    """Right after the last epoch of a round, or before the first: the baselines."""
    round_index = chance.choice([-1, 0, 1, 2])
    is_there = _wait(
        run,
        lambda: (
            any(
                e["event"] == "epoch" and e["round"] == round_index and e["epoch"] == 1
                for e in run.events()
            )
            or (round_index < 0 and (run.folder / "metrics.jsonl").exists())
        ),
        0.001,
    )
    time.sleep(chance.uniform(0, 0.05))
    return is_there


def during_discovery(run: Run, chance: random.Random) -> bool:
    round_index = chance.choice([0, 1])
    is_there = _wait(
        run,
        lambda: any(e["event"] == "round" and e["round"] == round_index for e in run.events()),
        0.001,
    )
    time.sleep(chance.uniform(0, 0.03))
    return is_there


def during_start(run: Run, chance: random.Random) -> bool:
    _wait(run, lambda: len(run.workers()) == RANKS)
    time.sleep(chance.uniform(0, SECONDS_TO_START))
    return run.is_running()


MOMENTS: dict[str, Callable[[Run, random.Random], bool]] = {
    "training": during_training,
    "save": during_saving,
    "evaluation": during_evaluation,
    "discovery": during_discovery,
    "start": during_start,
}


def _wait(run: Run, is_time: Callable[[], bool], pause: float = 0.005) -> bool:
    """False if the run ends first."""
    while run.is_running():
        if is_time():
            return bool(run.workers())
        time.sleep(pause)
    return False
