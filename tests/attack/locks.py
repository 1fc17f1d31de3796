"""Two jobs in one run folder, beside each other or in containers, and locks made by hand."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from and_dist.runs.lock import SECONDS_UNTIL_STALE
from tests.attack.campaign import Kind, Trial
from tests.end_to_end.processes import starts, steps
from tests.foreign_files.child import Limits, run_command
from tests.foreign_files.scenes import DEBUG, TINY, trained

CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
OURS = {"host": os.uname().nodename, "pid": 1, "process_start": 0.5, "job": None, "since": "then"}
"""A lock as the first revisions wrote it, of a process that cannot be looked up."""
CONTENTS: dict[str, Any] = {
    "nothing": b"",
    "bytes": b"\0\xff\xfe" * 50,
    "text": b"this run is mine\n",
    "a list": [OURS],
    "a number as host": OURS | {"host": 3},
    "text as pid": OURS | {"pid": "many"},
    "a huge pid": OURS | {"pid": 10**30},
    "a negative pid": OURS | {"pid": -1},
    "a list as start": OURS | {"process_start": [1]},
    "infinity as start": b'{"host": "vm", "pid": 1, "process_start": Infinity}',
    "a folder as job": OURS | {"job": {"a": 1}},
    "an escape as host": OURS | {"host": "\x1b[2J"},
    "brackets": b"[" * 200_000,
    "an earlier revision's": OURS,
    "one of another machine": OURS | {"host": "elsewhere", "job": "4711.0"},
}
COMMANDS = {
    "train": ("and-dist", "train", "--config", DEBUG, *TINY),
    "evaluate": ("and-dist", "evaluate", "runs/debug", "--knn"),
    "report": ("and-dist", "report", "runs/debug"),
    "table": ("and-dist", "table", "runs/debug"),
    "status": ("and-launch", "status", "runs/debug"),
}
SECONDS = 180.0


STALE_WHEN_OLD = ("an earlier revision's", "one of another machine", "an escape as host")
"""The contents that a lock of this program can have, and which is taken over when it is old."""


def hand_made(name: str, verb: str, is_old: bool) -> Trial:
    """A run that is finished, with a lock in it."""

    def carry_out(folder: Path) -> str:
        shutil.copytree(trained() / "runs", folder / "runs")
        lock, content = folder / "runs/debug/lock", CONTENTS[name]
        lock.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        if is_old:
            long_ago = time.time() - SECONDS_UNTIL_STALE - 60
            os.utime(lock, (long_ago, long_ago))
        before = lock.read_bytes()
        ended = run_command(COMMANDS[verb], folder, limits=Limits(SECONDS))
        wrong = ended.exceeded or ("Traceback" in ended.said and ended.said[-300:]) or ""
        if verb == "train":
            is_stale = is_old and name in STALE_WHEN_OLD
            is_told = ended.status in (1, 2) and "runs/debug/lock" in ended.said
            if not (ended.status == 0 if is_stale else is_told and lock.read_bytes() == before):
                wrong = wrong or f"status {ended.status}: {ended.said[-300:]}"
        elif ended.status != 0:
            wrong = wrong or f"status {ended.status}: {ended.said[-300:]}"
        return wrong

    age = "old" if is_old else "new"
    return Trial(f"{verb} where RUN/lock is {name}, {age}", carry_out)


class Job:
    """A run that never ends, in a container or not."""

    def __init__(self, folder: Path, number: int, is_contained: bool) -> None:
        self.log = folder / f"{number}.log"
        endless = ("curriculum.epochs=1000", "run.save_minutes=0.02", "evaluation.baselines=false")
        train = ("-m", "and_dist", "train", "--config", DEBUG, f"run.root={folder}/runs", *endless)
        within = CONTAINER if is_contained else ()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*within, sys.executable, *train],
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, is_time: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not is_time():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"it did not train: {self.said()[-400:]}")
            time.sleep(0.02)

    def is_refused(self) -> bool:
        status = self.process.wait(SECONDS)
        return status == 1 and "is being trained by process" in self.said()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def two_jobs(first_within: bool, second_within: bool, is_frozen: bool) -> Trial:
    """One trains, a second is refused, and a third goes on when the first was killed."""

    def carry_out(folder: Path) -> str:
        run = folder / "runs/debug"
        first = Job(folder, 1, first_within)
        jobs = [first]
        try:
            first.wait_for(lambda: steps(run) >= 1)
            if is_frozen:
                first.process.send_signal(signal.SIGSTOP)
                os.utime(run / "lock", (0, 0))
            jobs.append(second := Job(folder, 2, second_within))
            if not second.is_refused():
                return f"the second job was not refused: {second.said()[-300:]}"
            first.process.send_signal(signal.SIGCONT)
            before = steps(run)
            first.wait_for(lambda: steps(run) > before)
            if len(starts(run)) != 1:
                return "the second job wrote into environment.json"
            first.kill()
            before = steps(run)
            jobs.append(third := Job(folder, 3, second_within))
            third.wait_for(lambda: len(starts(run)) == 2 and steps(run) > before)
            return "" if "Traceback" not in third.said() else third.said()[-300:]
        finally:
            for job in jobs:
                job.kill()

    places = " and ".join(
        "in a container" if within else "outside" for within in (first_within, second_within)
    )
    frozen = ", the first frozen for long" if is_frozen else ""
    return Trial(f"two jobs in one run folder, {places}{frozen}", carry_out)


def at_once(number: int, is_contained: bool) -> Trial:
    """Of jobs that begin together one trains."""

    def carry_out(folder: Path) -> str:
        jobs = [Job(folder, index, is_contained) for index in range(number)]
        try:
            deadline = time.monotonic() + SECONDS
            while sum(job.process.poll() is None for job in jobs) > 1:
                if time.monotonic() > deadline:
                    return "more than one trains"
                time.sleep(0.02)
            (left,) = [job for job in jobs if job.process.poll() is None]
            left.wait_for(lambda: steps(folder / "runs/debug") >= 1)
            wrong = [job for job in jobs if job is not left and not job.is_refused()]
            return wrong[0].said()[-300:] if wrong else ""
        finally:
            for job in jobs:
                job.kill()

    where = "in containers" if is_contained else "outside"
    return Trial(f"{number} jobs that start at once, {where}", carry_out)


IS_ROOT = os.getuid() == 0
"""Only root makes PID namespaces like a container's."""


def draw(chance: random.Random) -> Trial:
    """Any lock under any command, or jobs in any places."""
    either = partial(chance.choice, (False, IS_ROOT))
    if chance.random() < 0.2:
        return two_jobs(either(), either(), chance.random() < 0.3)
    if chance.random() < 0.2:
        return at_once(chance.randint(2, 3), either())
    return hand_made(chance.choice([*CONTENTS]), chance.choice([*COMMANDS]), chance.random() < 0.5)


KIND = Kind(
    "locks",
    weight=24,
    known=[
        *(hand_made(name, "train", is_old=False) for name in CONTENTS),
        hand_made("text as pid", "report", is_old=False),
        hand_made("a huge pid", "status", is_old=False),
        two_jobs(False, False, is_frozen=True),
        *([two_jobs(True, True, is_frozen=False), two_jobs(True, False, False)] if IS_ROOT else []),
    ],
    draw=draw,
)
