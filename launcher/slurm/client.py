"""Call SLURM's programs squeue, scontrol, sinfo and scancel. Works without accounting (sacct)."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NEVER = {
    "AccountNotAllowed": "the account may not use this partition",
    "BadConstraints": "no node has what is asked for",
    "InvalidAccount": "the account is not known",
    "InvalidQOS": "the QOS is not known",
    "NodeDown": "a node it asked for is down",
    "PartitionConfig": "the partition does not take such jobs",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "PartitionNodeLimit": "it asks for more nodes than the partition gives",
    "PartitionTimeLimit": "it asks for more time than the partition gives",
    "QOSNotAllowed": "the QOS may not be used here",
    "DependencyNeverSatisfied": "what it waits for will never come",
}
"""Reasons for which a pending job would wait for ever, and their meaning."""

AWAY = re.compile(r"contact|timed out|not answered|[Cc]onnection|Zero Bytes")
"""Words in the error messages of SLURM's programs when slurmctld does not answer for a while."""
SECONDS_TO_ANSWER = 60
SECONDS_TO_SCHEDULE = 5.0
SECONDS_TO_CANCEL = 30.0
"""The longest time for cancelled jobs to end."""
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class SlurmJob:
    """Hold the state of a job as slurmctld reports it now."""

    id: str
    state: str
    reason: str
    nodes: str
    partition: str
    restarts: int
    seconds: str
    limit: str

    @property
    def is_over(self) -> bool:
        """Return whether the job neither waits nor runs."""
        return self.state not in {
            "PENDING",
            "RUNNING",
            "COMPLETING",
            "CONFIGURING",
            "SUSPENDED",
            "REQUEUED",
            "RESIZING",
            "REQUEUE_HOLD",
            "REQUEUE_FED",
            "SPECIAL_EXIT",
            "STAGE_OUT",
            "STOPPED",
            "SIGNALING",
        }


def check_slurm() -> None:
    """Raise RuntimeError if SLURM's programs are not on PATH."""
    missing = [program for program in ("sbatch", "squeue", "scontrol") if not shutil.which(program)]
    if missing:
        raise RuntimeError(
            f"{missing[0]} is not on PATH: this machine submits to no SLURM. `and-launch local` "
            "runs the same here, --dry-run shows what would be submitted"
        )


def ask(*command: str, patience: float = 0.0) -> str:
    """Return the output of a SLURM program.

    Raise RuntimeError with its error message if it refuses, or does not answer for `patience`
    seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return _ask(*command)
        except RuntimeError as error:
            if not AWAY.search(str(error)) or time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)


def _ask(*command: str) -> str:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER)
    except FileNotFoundError:
        raise RuntimeError(f"{command[0]} is not on PATH: this machine has no SLURM") from None
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{command[0]} has not answered for {SECONDS_TO_ANSWER} s") from None
    if answer.returncode:
        raise RuntimeError(f"{command[0]}: {in_few_words(answer.stderr or answer.stdout)}")
    return answer.stdout


def in_few_words(said: str) -> str:
    """Return the last error message in a program's output, or its first line, without the program's
    name."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it says nothing"]
    errors = [line for line in lines if "error: " in line]
    return re.sub(r"^(\w+: )?(error: )?", "", errors[-1] if errors else lines[0])


def find_job(job_id: str, patience: float = 0.0) -> SlurmJob | None:
    """Return a job's state; None for a job that slurmctld has forgotten."""
    try:
        shown = ask("scontrol", "show", "job", job_id, "--oneliner", patience=patience)
    except RuntimeError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    found = dict(re.findall(r"(\w+)=(\S*)", shown))
    return SlurmJob(
        job_id,
        found.get("JobState", "UNKNOWN"),
        found.get("Reason", "None"),
        found.get("NodeList", "").replace("(null)", ""),
        found.get("Partition", ""),
        int(found.get("Restarts", "0")),
        found.get("RunTime", ""),
        found.get("TimeLimit", ""),
    )


def find_scheduled_job(job_id: str) -> SlurmJob | None:
    """Return a job's state once slurmctld has tried to schedule it, or after
    SECONDS_TO_SCHEDULE."""
    deadline = time.monotonic() + SECONDS_TO_SCHEDULE
    while True:
        job = find_job(job_id)
        is_new = job is not None and (job.state, job.reason) == ("PENDING", "None")
        if not is_new or time.monotonic() > deadline:
            return job
        time.sleep(0.2)


def place_in_queue(job: SlurmJob) -> tuple[int, int]:
    """Return (place from 1, number) of a job among the pending jobs of its partition, by priority.

    The place is 0 for a job that is not pending any more.
    """
    listed = ask(
        "squeue",
        "--noheader",
        "--array",
        "--states=PENDING",
        f"--partition={job.partition}",
        "--sort=-p,i",
        "--format=%i",
    ).split()
    return (listed.index(job.id) + 1 if job.id in listed else 0), len(listed)


def partitions() -> list[str]:
    """Return the names of SLURM's partitions."""
    return sorted({name.rstrip("*") for name in ask("sinfo", "--noheader", "--format=%P").split()})


def gpus_of_nodes(partition: str | None) -> int | None:
    """Return the most GPUs that a node of a partition has, of the default one if it is None.

    Return None if SLURM does not say it.
    """
    options = [] if partition is None else [f"--partition={partition}"]
    try:
        shown = ask("sinfo", "--noheader", "--format=%P %G", *options)
    except RuntimeError:
        return None
    lines = [line.split(maxsplit=1) for line in shown.splitlines() if " " in line.strip()]
    found = [count_gres(gres) for name, gres in lines if partition or name.endswith("*")]
    return max(found, default=None)


def count_gres(gres: str) -> int:
    """Return the number of GPUs in SLURM's list of a node's resources: 8 of gpu:a100:8(S:0-1)."""
    kinds = [kind.split(":") for kind in re.sub(r"\([^)]*\)", "", gres).split(",")]
    gpus = [kind[-1] for kind in kinds if kind[0] == "gpu"]
    return sum(int(count) if count.isdecimal() else 1 for count in gpus)


def cancel(job_id: str, signal_name: str | None = None) -> None:
    """Cancel a job, or send it a signal."""
    options = [] if signal_name is None else [f"--signal={signal_name}"]
    ask("scancel", *options, job_id)


def cancel_quietly(job_id: str) -> None:
    """Cancel a job that may be over; errors are ignored."""
    with contextlib.suppress(RuntimeError):
        cancel(job_id)


def cancel_jobs_of(folder: Path) -> None:
    """Cancel the jobs whose batch script lies in this folder, and wait until they have ended: one
    that has started still writes its log. Errors are ignored.

    submitit reports no id where it fails after sbatch has accepted a job, so they are found by
    path.
    """
    with contextlib.suppress(RuntimeError):
        deadline = time.monotonic() + SECONDS_TO_CANCEL
        for job_id in _jobs_of(folder):
            cancel(job_id)
        while _jobs_of(folder) and time.monotonic() < deadline:
            time.sleep(0.2)


def _jobs_of(folder: Path) -> set[str]:
    """Return the ids of the jobs that wait, run or end, and whose batch script lies in a folder."""
    listed = ask("squeue", "--noheader", f"--user={os.getuid()}", "--format=%F %o", patience=20)
    return {line.split()[0] for line in listed.splitlines() if f" {folder}/" in line}


def requeue(job_id: str, patience: float = 0.0) -> None:
    """Queue a job again, under the same id."""
    ask("scontrol", "requeue", job_id, patience=patience)


def check_can_start(job: SlurmJob, wanted: Sequence[str]) -> None:
    """Raise ValueError for a pending job that SLURM would never start."""
    words = job.reason.replace("_", " ")
    if job.state == "PENDING" and (job.reason in NEVER or "can't use" in words):
        meaning = f", {NEVER[job.reason]}" if job.reason in NEVER else ""
        raise ValueError(
            f"SLURM took job {job.id}, but would never start it: {words}{meaning} "
            f"(asked for: {', '.join(wanted)}); it is cancelled again"
        )
