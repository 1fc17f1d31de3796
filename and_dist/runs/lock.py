"""Hold RUN/lock: one job at a time trains a run, or evaluates a checkpoint. No torch.

The kernel holds the lock: the holder keeps the file open under flock, which ends with its process,
in whichever container that runs. Not every file system shares such locks among machines, and some
have none, so the holder also touches the file now and then. A lock is left behind if its process is
gone, which only a process of the same PID namespace and boot can look up; if the kernel of the same
machine has released it; if it belongs to this very SLURM job, which was moved; or if nobody has
touched it lately. For a process of their own torchrun launch, whose node may be lost, workers wait
that long.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from and_dist.distributed.launch_env import boot_id, job_id, pid_namespace, process_start
from and_dist.runs.records import Holder, parse
from and_dist.utils.disk_errors import DiskError
from and_dist.utils.file_locks import lock_file
from and_dist.utils.owned_files import (
    check_file,
    create_locked,
    make_folder,
    read_clock_of,
    remove_file,
)
from and_dist.utils.plain_files import read_plain

SECONDS_BETWEEN_TOUCHES = 20.0
SECONDS_UNTIL_STALE = 120.0


def is_lock(path: Path) -> bool:
    """Return whether a file is a lock of this program, or of an earlier revision."""
    try:
        return _parse(read_plain(path)) is not None
    except (OSError, ValueError):
        return False


@contextmanager
def hold_lock(folder: Path, at_work: str, way_out: str) -> Iterator[None]:
    """Hold the lock of a folder; raise RuntimeError, naming the holder, if another job has it."""
    path = folder / "lock"
    make_folder(folder)
    check_file(path, is_lock)
    mine = _describe_this_process(folder).model_dump_json()
    descriptor, theirs = _take(path, mine)
    if descriptor is None:
        raise RuntimeError(
            f"{folder} is being {at_work} by {_name(theirs)}; {way_out} (its lock {path} "
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
        _release(descriptor)


def is_held(folder: Path) -> bool:
    """Return whether a job holds the lock, as far as can be seen from here."""
    path = folder / "lock"
    theirs = _read(path)
    holder = None if theirs is None else _parse(theirs)
    if holder is None:
        return False
    lives = _lives(holder)
    if lives is not None:
        return lives
    try:
        return time.time() - path.stat().st_mtime <= SECONDS_UNTIL_STALE
    except FileNotFoundError:  # released meanwhile
        return False


def _describe_this_process(folder: Path) -> Holder:
    """Return what the lock of this process says."""
    return Holder(
        host=platform.node(),
        pid=os.getpid(),
        process_start=process_start(os.getpid()),
        boot=boot_id(),
        pid_namespace=pid_namespace(),
        device=folder.stat().st_dev,
        job=job_id(),
        since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
    )


def _take(path: Path, mine: str) -> tuple[int | None, str]:
    """Return the descriptor that holds the lock; or None, and the content of another job's lock."""
    patience = time.monotonic() + SECONDS_UNTIL_STALE + SECONDS_BETWEEN_TOUCHES
    while (descriptor := create_locked(path, mine)) is None:
        theirs = _read(path)
        if theirs is None:
            continue
        if _remove_if_stale(path, theirs):
            continue
        if _is_of_this_launch(theirs) and time.monotonic() < patience:
            time.sleep(1)  # its node is lost, or it is about to end
        else:
            return None, theirs
    _HELD.add(descriptor)
    return descriptor, mine


def _remove_if_stale(path: Path, content: str) -> bool:
    """Remove a lock whose holder is gone; return False if it may not be.

    The lock of the kernel is held meanwhile, so that no other process takes over the same file.
    """
    try:
        descriptor = lock_file(path)
        is_stale = _is_stale(path, content, descriptor is not None)
    except BlockingIOError:
        # A server of files may keep the lock of a machine that is lost.
        descriptor = None
        is_stale = _is_of_another_boot(content) and _is_silent(path)
    try:
        if is_stale:
            remove_file(path, partial(_holds, content))
        return is_stale
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _is_stale(path: Path, content: str, is_free: bool) -> bool:
    """Return whether the lock's holder is gone; `is_free` if this process could lock the file."""
    holder = _parse(content)
    if holder is None:
        return _is_silent(path)
    lives = _lives(holder)
    if lives is not None:
        return not lives
    if is_free and not _is_of_another_boot(content) and holder.device == path.parent.stat().st_dev:
        return True  # its kernel is this one, and would have kept the lock
    if _is_of_this_launch(content) and not str(holder.job).startswith("torchrun"):
        return True  # SLURM restarts a job only after it has ended elsewhere
    return _is_silent(path)


def _is_silent(path: Path) -> bool:
    """Return whether nobody has touched a lock for so long that it counts as left behind."""
    try:
        return read_clock_of(path.parent) - path.stat().st_mtime > SECONDS_UNTIL_STALE
    except FileNotFoundError:
        return True


def _lives(holder: Holder) -> bool | None:
    """Return whether the holder's process lives; None if that cannot be seen from here."""
    started = process_start(holder.pid)
    is_same_process = started is not None and started == holder.process_start
    if holder.boot is None:
        # Earlier revisions did not write in which PID namespace their number counts.
        is_here = holder.host == platform.node() and is_same_process
    else:
        is_here = (holder.boot, holder.pid_namespace) == (boot_id(), pid_namespace())
    return is_same_process if is_here else None


def _is_of_another_boot(content: str) -> bool:
    """Return whether another machine wrote a lock, or this one before it was started again."""
    holder = _parse(content)
    return holder is None or holder.boot is None or holder.boot != boot_id()


def _is_of_this_launch(content: str) -> bool:
    """Return whether the lock belongs to this job."""
    holder = _parse(content)
    return holder is not None and holder.job is not None and holder.job == job_id()


def _holds(content: str, lock: Path) -> bool:
    """Return whether a file is a lock with this content."""
    return is_lock(lock) and _read(lock) == content


def _name(content: str) -> str:
    """Return words for the holder of a lock."""
    holder = _parse(content)
    if holder is None:
        return "a process that its lock does not name"
    job = f", job {holder.job}" if holder.job else ""
    return f"process {holder.pid} on {holder.host}{job}, since {holder.since}"


def _parse(content: str) -> Holder | None:
    """Return what a lock says; None for a torn or foreign one."""
    try:
        return Holder.model_validate(parse(content))
    except ValueError:
        return None


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


_HELD: set[int] = set()
"""The descriptors by which this process holds locks."""


def _release(descriptor: int) -> None:
    """Give back the lock of the kernel."""
    _HELD.discard(descriptor)
    os.close(descriptor)


def _forget_locks_of_parent() -> None:
    """Close what a forked process inherits: it would keep the locks of a parent that was killed."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_forget_locks_of_parent)
