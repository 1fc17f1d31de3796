"""Read and write the folders of a run's jobs, RUN/jobs/001, 002, ...: one for each submission.

request.json          the request of the user
config.yaml           the resolved config
code/                 a copy of the packages at submission
secrets.sh            keys and passwords of the cluster profile, if it has any
job.json              SLURM's id of the job
start-0/checkpoint    the newest checkpoint when a start began
start-0/node-1.json   how the ranks of a node ended in a start
start-0/end.json      how a start ended, and whether the job goes on

Only the owner can read RUN/jobs: scripts and submitit's files name everything a job runs with.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError

import and_dist
from and_dist.config.validation import Section
from and_dist.runs.folder import REVISION_FILE, revision
from and_dist.runs.records import (
    Record,
    read_record,
    read_sealed,
    say_damage,
    write_record,
)
from and_dist.utils.disk_errors import naming_disk
from and_dist.utils.folder_names import Named
from and_dist.utils.owned_files import (
    PRIVATE,
    IsOurs,
    clear_unfinished_in,
    create_file,
    is_json_with,
    make_folder,
    starts_with,
    write_file,
)
from and_dist.utils.owned_folders import copy_tree, remove_tree
from and_dist.utils.plain_files import read_plain
from launcher.jobs.request import Request

S = TypeVar("S", bound=Section)
T = TypeVar("T")
PACKAGES = ("and_dist", "launcher")
"""The packages that are copied into a job's folder."""
WRITTEN = Named(
    r"(request|job)\.json|config\.yaml|secrets\.sh|code/.*|start-\d+/.*|\.submission_file_[0-9a-f]{32}\.sh|"
    r"[0-9a-f]{32}\.pkl|\d+(_\d+)*_(submission\.sh|(submitted|result)\.pkl|log\.(out|err))"
)
"""The files that this program and submitit write in a job's folder, by their paths in it."""
is_request = is_json_with("run", "command", "nodes")
is_node_end = is_json_with("node", "exit_codes")
is_end = is_json_with("state", "why")
is_log = starts_with("--- ")
"""Recognise the log of a rank or a node, which begins with the mark of its first start."""


class Submitted(Record):
    """Hold the content of job.json."""

    id: Annotated[str, Field(pattern=r"^\d+(_\d+)?$")]
    """SLURM's id of the job. SLURM's programs are given it, so nothing else may stand here."""


class NodeEnd(Section):
    """Record how a node's ranks ended in one start."""

    node: str
    exit_codes: dict[int, int] = Field(default_factory=dict)
    """Exit codes by rank, of those that failed by themselves; the negative number of a signal that
    killed one."""
    launcher: int | None = None
    """Exit code of torchrun; None where torchrun was not started."""
    heard: tuple[str, ...] = ()
    """Names of the signals that asked the node to end."""
    problem: str = ""
    """Reason why torchrun was not started, or empty."""


class StartOutcome(Section):
    """Record how one start ended, and whether the job goes on."""

    state: str
    """"finished", "goes on", "stopped" (would go on, but is not requeued), "failed" or
    "cancelled"."""
    why: str
    rank: int | None = None
    """The rank whose log explains the end."""
    when: float = 0.0


def new_job_folder(run: Path, made: list[Path] | None = None) -> Path:
    """Create the next free job folder of a run, add it to `made` and return it.

    A number is taken by creating its folder, so two submissions never share one.
    """
    jobs = run / "jobs"
    make_folder(jobs)
    jobs.chmod(0o700)  # earlier revisions let others look into it
    for earlier in (*jobs.glob("[0-9]*"), *jobs.glob("[0-9]*/start-*")):
        clear_unfinished_in(earlier)  # those of launchers and nodes that were killed
    taken = [path.name for path in jobs.glob("[0-9]*")]
    number = max((int(name) for name in taken if name.isdecimal()), default=0) + 1
    while True:
        folder = jobs / f"{number:03d}"
        try:
            with naming_disk(folder):
                folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            if made is not None:
                made.append(folder)
            return folder


def job_folders(run: Path) -> list[Path]:
    """Return the job folders of a run, oldest first, without folders that hold no job.

    Raise ValueError for a run of somebody else's, whose jobs are closed.
    """
    jobs = run / "jobs"
    if jobs.is_dir() and not os.access(jobs, os.R_OK | os.X_OK, effective_ids=True):
        raise ValueError(
            f"{jobs} is closed: only {jobs.owner()}, who submitted the run, can see it"
        )
    found = jobs.glob("[0-9]*")
    return sorted(path for path in found if path.name.isdecimal() and _is_job(path))


def _is_job(folder: Path) -> bool:
    """Return whether a folder is a job's, whose files may be damaged, or a new one."""
    if not folder.is_dir():
        return False
    names = os.listdir(folder)
    return not names or "request.json" in names or "job.json" in names


def remove_job(job: Path) -> None:
    """Remove the folder of a job that was not submitted after all; a user's files in it stay."""
    remove_tree(job, WRITTEN)


def take_snapshot(code: Path, secrets: Mapping[str, str] | None = None) -> None:
    """Copy the packages this process runs, with their revision, and write secrets beside them."""
    source = Path(and_dist.__file__).parents[1]
    make_folder(code)
    for package in PACKAGES:
        copy_tree(source / package, code / package)
    write_file(code / REVISION_FILE, f"{revision() or ''}\n")
    if secrets:
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in secrets.items()]
        write_file(code.with_name("secrets.sh"), "".join(lines), mode=PRIVATE)


def read_secrets(request: Request) -> dict[str, str]:
    """Return the secrets of a job as environment variables."""
    if not request.has_secrets:
        return {}
    words = shlex.split(request.secrets_file.read_text())
    return dict(word.split("=", 1) for word in words if "=" in word)


def write_request(job: Path, request: Request) -> None:
    """Write request.json."""
    _write(job / "request.json", request, is_request)


def read_request(job: Path) -> Request:
    """Return the request of a job."""
    return _read(job / "request.json", Request)


def write_id(job: Path, job_id: str) -> None:
    """Write the id that SLURM gave the job, and the time."""
    when = time.strftime("%Y-%m-%d %H:%M:%S %z")
    is_ours = is_json_with("id", "submitted")
    write_record(job / "job.json", {"id": job_id, "submitted": when}, is_ours)


def read_id(job: Path) -> str | None:
    """Return SLURM's id of the job; None if SLURM has not accepted it or it ran on this machine."""
    try:
        found = read_record(job / "job.json", Submitted)
    except FileNotFoundError:
        return None
    return str(found["id"])


def start_folder(job: Path, start: int) -> Path:
    """Return the folder of one start."""
    return job / f"start-{start}"


def starts(job: Path) -> list[int]:
    """Return the numbers of the job's starts, in order."""
    names = [path.name.removeprefix("start-") for path in job.glob("start-*")]
    return sorted(int(name) for name in names if name.isdecimal())


def note_beginning(job: Path, start: int) -> None:
    """Write down which checkpoint is the newest as a start begins."""
    folder = start_folder(job, start)
    make_folder(folder)
    write_file(folder / "checkpoint", newest_checkpoint(job.parents[1]), is_pointer)


def starts_without_progress(job: Path, last: int) -> int:
    """Return how many starts in a row, up to `last`, left no newer checkpoint than there was
    before.

    A start that was lost before it wrote down its checkpoint is one of them.
    """
    newest = newest_checkpoint(job.parents[1])
    for start in range(last, -1, -1):
        noted = start_folder(job, start) / "checkpoint"
        if noted.exists() and read_plain(noted, "replace") != newest:
            return last - start
    return last + 1


def write_node_end(job: Path, start: int, node: int, end: NodeEnd) -> None:
    """Write how the ranks of a node ended."""
    _write(start_folder(job, start) / f"node-{node}.json", end, is_node_end)


def read_node_ends(job: Path, start: int) -> dict[int, NodeEnd]:
    """Return the ends of the nodes by their number; a node that was lost has none."""
    files = start_folder(job, start).glob("node-*.json")
    numbered = {path.stem.removeprefix("node-"): path for path in sorted(files)}
    return {int(n): _read(path, NodeEnd) for n, path in numbered.items() if n.isdecimal()}


def claim_end(job: Path, start: int) -> bool:
    """Return whether this process decides how the start ended: the first process to ask does."""
    folder = start_folder(job, start)
    make_folder(folder)
    return create_file(folder / "decided", "")


def write_end(job: Path, start: int, end: StartOutcome) -> None:
    """Write how a start ended."""
    _write(start_folder(job, start) / "end.json", end, is_end)


def read_end(job: Path, start: int) -> StartOutcome | None:
    """Return how a start ended; None if nothing was decided."""
    path = start_folder(job, start) / "end.json"
    return _read(path, StartOutcome) if path.exists() else None


def read_ends(job: Path) -> Iterator[StartOutcome]:
    """Yield the outcomes of a job's starts, oldest first; a start lost with its node has none."""
    for start in starts(job):
        if (end := if_sound(read_end, job, start)) is not None:
            yield end


def newest_checkpoint(run: Path) -> str:
    """Return the name in RUN/checkpoints/latest; an empty string if there is none."""
    try:
        return read_plain(run / "checkpoints" / "latest").strip()
    except (OSError, ValueError):
        return ""


def is_pointer(path: Path) -> bool:
    """Recognise a file that holds the name of a checkpoint, or nothing."""
    return re.fullmatch(r"[A-Za-z0-9_-]*", path.read_text(errors="replace")) is not None


def if_sound(read: Callable[..., T], job: Path, *more: int) -> T | None:
    """Return what a file of a job holds; say it and return None if the file is damaged."""
    try:
        return read(job, *more)
    except (OSError, ValueError) as error:
        say_damage(f"damaged and left out: {error}")
        return None


def _read(path: Path, model: type[S]) -> S:
    """Return what a file of a job holds; raise ValueError where and-launch did not write it so."""
    try:
        return model.model_validate_json(json.dumps(read_sealed(path)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}, {where or 'as a whole'}: {first['msg'].lower()}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _write(path: Path, value: Section, is_ours: IsOurs) -> None:
    make_folder(path.parent)
    write_record(path, value.model_dump(mode="json"), is_ours)
