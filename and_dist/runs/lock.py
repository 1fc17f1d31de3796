"""Hold RUN/lock: one job at a time trains a run, or evaluates a checkpoint. No torch.

The holder touches the file now and then. A lock is stale if its process is gone from this machine,
if it belongs to this very SLURM job, which was moved, or if nobody has touched it lately. For a
process of their own torchrun launch, whose node may be lost, workers wait that long.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from and_dist.distributed.launch_env import job_id, process_start
from and_dist.utils.disk_errors import DiskError
from and_dist.utils.owned_files import (
    check_file,
    create_file,
    is_json_with,
    make_folder,
    read_clock_of,
    remove_file,
)
from and_dist.utils.plain_files import read_plain

SECONDS_BETWEEN_TOUCHES = 20.0
SECONDS_UNTIL_STALE = 120.0
is_lock = is_json_with("host", "pid")


@contextmanager
def hold_lock(folder: Path, at_work: str, way_out: str) -> Iterator[None]:
    """Hold the lock of a folder; raise RuntimeError, naming the holder, if another job has it."""
    path = folder / "lock"
    mine = json.dumps(
        {
            "host": platform.node(),
            "pid": os.getpid(),
            "process_start": process_start(os.getpid()),
            "job": job_id(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
    )
    make_folder(folder)
    check_file(path, is_lock)
    holder = _take(path, mine)
    if holder is not None:
        raise RuntimeError(
            f"{folder} is being {at_work} by {_describe(holder)}; {way_out} (its lock {path} "
            f"counts as left behind {SECONDS_UNTIL_STALE:.0f} s after its last sign of life)"
        )
    done = threading.Event()
    toucher = threading.Thread(target=_keep_touching, args=(path, mine, done), daemon=True)
    toucher.start()
    try:
        yield
    finally:
        done.set()
        toucher.join()
        with suppress(DiskError):  # a lock of a process that is gone counts for nothing
            remove_file(path, partial(_holds, mine))


def is_held(folder: Path) -> bool:
    """Return whether a job holds the lock, as far as can be seen from here."""
    path = folder / "lock"
    theirs = _read(path)
    if theirs is None:
        return False
    holder = _parse(theirs)
    if holder.get("host") == platform.node():
        return process_start(holder.get("pid", 0)) == holder.get("process_start")
    try:
        return time.time() - path.stat().st_mtime <= SECONDS_UNTIL_STALE
    except FileNotFoundError:  # released meanwhile
        return False


def _take(path: Path, mine: str) -> str | None:
    """Return the content of another job's lock; None once the lock is ours."""
    patience = time.monotonic() + SECONDS_UNTIL_STALE + SECONDS_BETWEEN_TOUCHES
    while not create_file(path, mine):
        theirs = _read(path)
        if theirs is None:
            continue
        if _is_stale(path, theirs):
            remove_file(path, partial(_holds, theirs))
        elif _is_of_this_launch(theirs) and time.monotonic() < patience:
            time.sleep(1)  # its node is lost, or it is about to end
        else:
            return theirs
    return None


def _holds(content: str, lock: Path) -> bool:
    """Return whether a file is a lock with this content."""
    return is_lock(lock) and _read(lock) == content


def _is_stale(path: Path, content: str) -> bool:
    """Return whether the lock's holder is gone."""
    holder = _parse(content)
    if holder.get("host") == platform.node():
        return process_start(holder.get("pid", 0)) != holder.get("process_start")
    if _is_of_this_launch(content) and not str(holder["job"]).startswith("torchrun"):
        return True  # SLURM restarts a job only after it has ended elsewhere
    try:
        return read_clock_of(path.parent) - path.stat().st_mtime > SECONDS_UNTIL_STALE
    except FileNotFoundError:
        return True


def _is_of_this_launch(content: str) -> bool:
    """Return whether the lock belongs to this job."""
    job = _parse(content).get("job")
    return job is not None and job == job_id()


def _describe(content: str) -> str:
    """Describe the holder of a lock."""
    holder = _parse(content)
    job = f", job {holder['job']}" if holder.get("job") else ""
    return f"process {holder.get('pid')} on {holder.get('host')}{job}, since {holder.get('since')}"


def _parse(content: str) -> dict[str, Any]:
    """Return what a lock says; nothing for a torn or foreign one."""
    try:
        holder = json.loads(content)
    except json.JSONDecodeError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _read(path: Path) -> str | None:
    """Return the content of a lock; None where there is none."""
    try:
        return read_plain(path, "replace")
    except FileNotFoundError:
        return None


def _keep_touching(path: Path, mine: str, done: threading.Event) -> None:
    """Touch the lock until `done`; end the process if another job has taken it over."""
    while not done.wait(SECONDS_BETWEEN_TOUCHES):
        try:
            if _read(path) == mine:
                os.utime(path)
                continue
        except OSError:
            continue  # a file system may be away for a while
        try:
            # Not by logging, whose lock a thread that hangs may hold.
            print(f"and-dist: {path} was taken over by another job", file=sys.stderr, flush=True)
        finally:
            os._exit(1)  # at once: it must not save into a run that another job trains
