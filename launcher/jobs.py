"""RUN/jobs/001, 002, ...: one folder a submission, and what its nodes leave in it.

request.json          what was asked for
config.yaml           the config, resolved
code/                 the packages as they were
job.json              its id, once SLURM has taken it
start-0/checkpoint    the newest there was when a start began
start-0/node-1.json   how the ranks of a node ended in one start
start-0/end.json      how the start ended, and what comes next
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

import and_dist
from and_dist.run_folder import REVISION_FILE, replace_file, revision
from and_dist.sections import Section
from launcher.request import Request

PACKAGES = ("and_dist", "launcher")


class NodeEnd(Section):
    """How a node's ranks ended in one start."""

    node: str
    exit_codes: dict[int, int] = Field(default_factory=dict)
    """Of the ranks that failed by themselves; minus the number of a signal that killed one."""
    launcher: int | None = None
    """torchrun's own; None where it never came to that."""
    heard: tuple[str, ...] = ()
    """Signals that asked the node to end."""
    problem: str = ""
    """What kept it from starting torchrun."""


class End(Section):
    """How one start ended, and what comes next."""

    state: str
    """finished, goes on, stopped (would go on, but is not requeued), failed or cancelled."""
    why: str
    rank: int | None = None
    """Whose log says more."""
    when: float = 0.0


def new_job_folder(run: Path) -> Path:
    """Taken by making it, so two submissions never share one."""
    number = max((int(folder.name) for folder in job_folders(run)), default=0) + 1
    while True:
        folder = run / "jobs" / f"{number:03d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def job_folders(run: Path) -> list[Path]:
    """Oldest first."""
    return sorted(path for path in (run / "jobs").glob("[0-9]*") if path.is_dir())


def take_snapshot(code: Path) -> None:
    """Copy the packages this process runs, with their revision."""
    source = Path(and_dist.__file__).parents[1]
    code.mkdir(parents=True)
    for package in PACKAGES:
        shutil.copytree(
            source / package, code / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    (code / REVISION_FILE).write_text(f"{revision() or ''}\n")


def write_request(job: Path, request: Request) -> None:
    replace_file(job / "request.json", request.model_dump_json(indent=1))


def read_request(job: Path) -> Request:
    return Request.model_validate_json((job / "request.json").read_text())


def write_id(job: Path, job_id: str) -> None:
    when = time.strftime("%Y-%m-%d %H:%M:%S %z")
    replace_file(job / "job.json", json.dumps({"id": job_id, "submitted": when}))


def read_id(job: Path) -> str | None:
    """None before SLURM has taken the job, or for one that ran on this machine."""
    try:
        return str(json.loads((job / "job.json").read_text())["id"])
    except FileNotFoundError:
        return None


def start_folder(job: Path, start: int) -> Path:
    return job / f"start-{start}"


def starts(job: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("start-")) for path in job.glob("start-*"))


def note_beginning(job: Path, start: int) -> None:
    folder = start_folder(job, start)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "checkpoint", newest_checkpoint(job.parents[1]))


def starts_without_progress(job: Path, last: int) -> int:
    """How many in a row, up to this one, left no newer checkpoint than there was as they began. One
    that was lost before it could say is one of them."""
    newest = newest_checkpoint(job.parents[1])
    for start in range(last, -1, -1):
        noted = start_folder(job, start) / "checkpoint"
        if noted.exists() and noted.read_text() != newest:
            return last - start
    return last + 1


def write_node_end(job: Path, start: int, node: int, end: NodeEnd) -> None:
    _write(start_folder(job, start) / f"node-{node}.json", end)


def read_node_ends(job: Path, start: int) -> dict[int, NodeEnd]:
    """By the number of the node; those that were lost are not among them."""
    return {
        int(path.stem.removeprefix("node-")): NodeEnd.model_validate_json(path.read_text())
        for path in sorted(start_folder(job, start).glob("node-*.json"))
    }


def claim_end(job: Path, start: int) -> bool:
    """Whether it is this process that decides how the start ended: the first to ask does."""
    folder = start_folder(job, start)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / "decided").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def write_end(job: Path, start: int, end: End) -> None:
    _write(start_folder(job, start) / "end.json", end)


def read_end(job: Path, start: int) -> End | None:
    path = start_folder(job, start) / "end.json"
    return End.model_validate_json(path.read_text()) if path.exists() else None


def read_ends(job: Path) -> Iterator[End]:
    """Oldest first; starts that were lost with their node left none."""
    for start in starts(job):
        if (end := read_end(job, start)) is not None:
            yield end


def newest_checkpoint(run: Path) -> str:
    """What RUN/checkpoints/latest names; nothing where there is none."""
    try:
        return (run / "checkpoints" / "latest").read_text().strip()
    except OSError:
        return ""


def _write(path: Path, value: Section) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, value.model_dump_json(indent=1))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())
