"""Read the status of a run, from SLURM while it knows the job, and from the run folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from and_dist.runs.folder import check_inside, read_starts, say_if_cut
from and_dist.runs.goodput import Goodput, Tally, goodput, read_decisions
from and_dist.runs.metrics_file import read_last
from launcher.jobs.job_folder import (
    StartOutcome,
    if_sound,
    job_folders,
    read_end,
    read_id,
    read_request,
    starts,
)
from launcher.jobs.request import Request
from launcher.slurm import client

KEPT = ("step", "round")
"""The events of which the last line is shown."""
ADDED_UP = ("checkpoint", "discovery")
"""The events that say what training waited for."""
FORGOTTEN = "forgotten by SLURM"
"""The state of a job that SLURM no longer knows."""


@dataclass(frozen=True)
class Status:
    """Hold the status of a run, its job and its training."""

    run: Path
    state: str
    """"not submitted", "finished", "stopped", "failed", "cancelled", or a state of SLURM's such as
    PENDING."""
    job_id: str | None = None
    slurm: client.SlurmJob | None = None
    request: Request | None = None
    queue: tuple[int, int] | None = None
    num_starts: int = 0
    end: StartOutcome | None = None
    """Outcome of the newest start, if it has ended and one was decided."""
    last_end: StartOutcome | None = None
    """Outcome of the newest start that has one."""
    training: dict[str, Any] = field(default_factory=dict)
    """The last step, and the last finished round, as in metrics.jsonl."""
    goodput: Goodput | None = None
    """How much of its time the run has trained, and to what the rest was lost."""

    @property
    def is_over(self) -> bool:
        """Return whether the run's job neither waits nor runs.

        SLURM's state counts. Where it gives none, and for a run on this machine, the outcome of the
        newest start does.
        """
        if self.slurm is not None:
            return self.slurm.is_over
        is_judged = self.end is not None and self.end.state != "goes on"
        return is_judged or self.state.startswith(("not submitted", FORGOTTEN))


def look_at(run: Path) -> Status:
    """Return the status of a run; raise ValueError for a folder that holds no run."""
    if not (run / "config.yaml").exists():
        raise ValueError(f"{run} holds no run: it has no config.yaml")
    check_inside(run)
    jobs = job_folders(run)
    training, tally = read_training(run)
    history = read_starts(run)
    say_if_cut(run, history)
    found = goodput(history, tally, read_decisions(run))
    if not jobs:
        return Status(run, "not submitted", training=training, goodput=found)
    job = jobs[-1]
    ends = [if_sound(read_end, job, start) for start in starts(job)]
    end = ends[-1] if ends else None
    before = next((end for end in reversed(ends) if end is not None), None)
    job_id, queue = if_sound(read_id, job), None
    try:
        slurm = client.find_job(job_id) if job_id else None
        state = _state(job_id, slurm, end)
        if slurm is not None and slurm.state == "PENDING":
            queue = client.place_in_queue(slurm)
    except RuntimeError as error:  # without SLURM, logs and figures are still worth showing
        slurm, state = None, f"unknown, {error}"
    return Status(
        run,
        state,
        job_id,
        slurm,
        if_sound(read_request, job),
        queue,
        len(ends),
        end,
        before,
        training,
        found,
    )


def _state(job_id: str | None, slurm: client.SlurmJob | None, end: StartOutcome | None) -> str:
    if slurm is not None and not slurm.is_over:
        return slurm.state
    if end is not None and end.state != "goes on":
        return end.state
    if slurm is not None:
        return slurm.state
    if job_id is None:
        return "runs on this machine, or was ended there"
    return f"{FORGOTTEN}; the last start {'went on' if end else 'left no record'}"


def is_active(run: Path) -> str | None:
    """Return the id of the run's job that waits or runs, or None."""
    for job in reversed(job_folders(run)):
        job_id = read_id(job)
        known = client.find_job(job_id) if job_id else None
        if known is not None and not known.is_over:
            return job_id
    return None


def read_training(run: Path) -> tuple[dict[str, Any], Tally]:
    """Return the last "step" and "round" records of metrics.jsonl, and what training waited for.

    The file may be growing meanwhile.
    """
    path = run / "metrics.jsonl"
    if not path.exists():
        return {}, Tally()
    last, waits = read_last(path, KEPT, ADDED_UP)
    return last, Tally([*waits, *last.values()])


def as_lines(status: Status) -> list[str]:
    """Return the status as lines of text."""
    lines = [f"{status.run}: {status.state}" + (f", job {status.job_id}" if status.job_id else "")]
    slurm, request, step = status.slurm, status.request, status.training.get("step")
    if slurm is not None and slurm.state == "PENDING":
        place, waiting = status.queue or (0, 0)
        lines.append(f"  waits for {slurm.reason}, {place}. of {waiting} in {slurm.partition}")
    elif slurm is not None and slurm.nodes:
        lines.append(
            f"  on {slurm.nodes} in {slurm.partition}, for {slurm.seconds} of {slurm.limit}"
        )
    if request is not None:
        lines.append(
            f"  {request.nodes} node(s) of {request.workers} rank(s), {max(status.num_starts, 1)} "
            "start(s)"
        )
    if step is not None:
        lines.append(
            f"  round {step['round']} epoch {step['epoch'] + 1}, step {step['step']:,}: loss "
            f"{step['loss']:.3f}, {step['images_per_s']:,.0f} images/s"
        )
    done = status.training.get("round")
    if done is not None and done.get("knn") is not None:
        lines.append(f"  round {done['round']} done: kNN {100 * done['knn']:.1f} %")
    if status.goodput is not None:
        lines.append(f"  goodput {status.goodput.describe()}")
    if status.last_end is not None:
        which = "last end" if status.end else "an earlier start"
        lines.append(f"  {which}: {status.last_end.state}, {status.last_end.why}")
    return lines
