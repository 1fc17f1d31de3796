"""Real jobs, and how they are disturbed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from launcher.jobs.job_folder import StartOutcome, job_folders, read_end, starts
from launcher.status import Status, look_at, read_training
from slurm.testcluster.cluster import PATIENCE, wait_until
from tests.end_to_end.processes import pids_of

REPOSITORY = Path(__file__).parents[2]
CONFIG = (
    "--config",
    str(REPOSITORY / "configs/debug.yaml"),
    "curriculum.rounds=1",
    "curriculum.epochs=10",
    "optim.milestones=[5]",
    "evaluation.baselines=false",
    "run.threads=1",
    "run.device=cpu",
)
"""100 steps, some three seconds once it trains; a checkpoint an epoch, which is five steps."""
SHORT = (*CONFIG, "curriculum.epochs=2", "optim.milestones=[1]")
ONE_NODE = ("--nodes", 1, "--workers", 2)
"""The two ranks on one node: where the number of nodes is not the point, this starts sooner."""
AT_STEP = 15
"""The step at which a run is disturbed."""
SECONDS_TO_ASK = 0.5
"""The time between two questions to SLURM: each starts a process or two."""


def launch(*arguments: object) -> tuple[int, str]:
    """and-launch as a user calls it: exit status, and what it said."""
    said = subprocess.run(
        [sys.executable, "-m", "launcher", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    return said.returncode, said.stdout


def submit(name: str, *arguments: object, config: tuple[str, ...] = CONFIG) -> Path:
    """The folder of a run of two nodes with a rank each, if not said otherwise, taken by SLURM."""
    status, said = launch(
        "submit",
        *config,
        f"name={name}",
        "--cluster",
        "cluster.yaml",
        "--nodes",
        2,
        "--time",
        "10m",
        *arguments,
    )
    assert status == 0, said
    return Path("runs", name).absolute()


def steps_of(run: Path) -> int:
    return int(read_training(run)[0].get("step", {}).get("step", 0))


def wait_for_step(run: Path, step: int, start: int = 0) -> None:
    """Of the run's start that is under way; starts count from 0."""

    def has_come() -> bool:
        return steps_of(run) >= step and len(starts(job_folders(run)[-1])) > start

    wait_until(has_come, f"step {step} of {run.name}")


def pause_at_step(run: Path, step: int = AT_STEP, start: int = 0) -> None:
    """Stop all ranks at a step or soon after, so that the run cannot end before it is disturbed."""
    wait_for_step(run, step, start)
    signal_all(worker_of(run), signal.SIGSTOP)


def resume(run: Path) -> None:
    signal_all(worker_of(run), signal.SIGCONT)


def wait_for_end(run: Path, seconds: float = PATIENCE) -> Status:
    """Until nothing of it waits or runs."""

    def is_over() -> bool:
        slurm = look_at(run).slurm
        return slurm is None or slurm.is_over

    wait_until(is_over, f"the end of {run.name}", seconds, SECONDS_TO_ASK)
    return look_at(run)


def ends_of(run: Path) -> list[StartOutcome | None]:
    """Of every start of its last job."""
    job = job_folders(run)[-1]
    return [read_end(job, start) for start in starts(job)]


def signal_all(pattern: str, number: signal.Signals) -> None:
    for pid in pids_of(pattern):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_one(pattern: str) -> None:
    os.kill(pids_of(pattern)[0], signal.SIGKILL)


def worker_of(run: Path) -> str:
    return rf"-m and_dist train --config {run}/jobs"


def agent_of(run: Path) -> str:
    return rf"-m launcher\.node\.torchrun {run}/jobs"


def seconds_until(run: Path, start: int) -> float:
    """How long the rest of a start takes to be decided."""
    began = time.monotonic()
    job = job_folders(run)[-1]
    wait_until(lambda: read_end(job, start) is not None, f"end of start {start}")
    return time.monotonic() - began
