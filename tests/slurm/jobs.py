"""Real jobs, and how they are disturbed."""

from __future__ import annotations

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
    "curriculum.epochs=40",
    "optim.milestones=[20]",
    "evaluation.baselines=false",
    "run.threads=1",
    "run.device=cpu",
)
"""400 steps, some fifteen seconds once it trains; a checkpoint an epoch."""
SHORT = (*CONFIG, "curriculum.epochs=2", "optim.milestones=[1]")


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
    """The folder of a run of two nodes with a rank each, taken by SLURM."""
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


def wait_for_step(run: Path, step: int, start: int = 0) -> None:
    """Of the run's start that is under way; starts count from 0."""

    def has_come() -> bool:
        trained = read_training(run).get("step", {}).get("step", 0)
        return trained >= step and len(starts(job_folders(run)[-1])) > start

    wait_until(has_come, f"step {step} of {run.name}")


def wait_for_end(run: Path, seconds: float = PATIENCE) -> Status:
    """Until nothing of it waits or runs."""

    def is_over() -> bool:
        slurm = look_at(run).slurm
        return slurm is None or slurm.is_over

    wait_until(is_over, f"the end of {run.name}", seconds)
    return look_at(run)


def ends_of(run: Path) -> list[StartOutcome | None]:
    """Of every start of its last job."""
    job = job_folders(run)[-1]
    return [read_end(job, start) for start in starts(job)]


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
