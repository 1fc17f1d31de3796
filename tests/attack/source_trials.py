"""Commands that read sources of images, and what counts as broken when they are hostile or odd.

A command holds if it ends with status 0, 1 or 2, without a traceback, within its time and memory;
if what it refuses is named; and if nothing half-made is left where it writes or in shared memory.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.attack.campaign import Trial
from tests.foreign_files.child import Limits, run_command
from tests.foreign_files.scenes import DEBUG, TINY, lay_run

Command = tuple[str, ...]
LIMITS = Limits(seconds=60, mb=2500)
DECODING = Limits(seconds=400, mb=3600)
"""For sources that hold gigapixels, which take their time."""
SHARED_MEMORY = Path("/dev/shm")
PREPARE: Command = ("and-dist", "prepare", "photos", "--out", "out", "--workers", "1")
TRAIN: Command = (
    *("and-dist", "train", "--config", DEBUG, *TINY),
    *("data.train=photos", "optim.batch_size=4", "evaluation.knn=2"),
)
HUGE: Command = (
    *("and-dist", "train", "--config", DEBUG, "run.root=runs", "data.train=photos"),
    *("method=instance", "curriculum.rounds=0", "curriculum.epochs=1", "optim.milestones=[]"),
    *("optim.batch_size=4", "evaluation.knn=2", "evaluation.baselines=false", "evaluation.every=0"),
)
EMBED: Command = ("and-dist", "embed", "runs/debug", "photos", "--out", "features.npy")
NEAR: Command = ("and-dist", "neighbours", "runs/debug", "--count", "2")
OPTIONS: Sequence[Command] = (
    (),
    ("--verify",),
    ("--pack",),
    ("--pack", "--resize", "9"),
    ("--raw", "9"),
    ("--verify", "--bad-images", "skip"),
    ("--raw", "9", "--bad-images", "skip"),
)


def judge(command: Command, folder: Path, named: Sequence[str], limits: Limits = LIMITS) -> str:
    """Run a command; return what broke. One of `named` has to be in the message of a refusal."""
    shared = set(os.listdir(SHARED_MEMORY))
    outcome = run_command(command, folder, limits=limits)
    shown = f"`{' '.join(command[:2])} ...`"
    if outcome.exceeded:
        return f"{shown}: {outcome.exceeded}"
    if outcome.status not in (0, 1, 2):
        return f"{shown} ended with status {outcome.status}: {outcome.said[-300:]}"
    if "Traceback" in outcome.said:
        return f"{shown} ended in a traceback: {outcome.said[-400:]}"
    if outcome.status and not any(name in outcome.said for name in named):
        return f"{shown} names none of {', '.join(named)}: {outcome.said[-300:]}"
    rewrites = outcome.status and {"--pack", "--raw"} & set(command)
    # A pack that is refused for its bad images is resumed by the same command with `skip`.
    ends = r"\.(unfinished|replaced)$" if rewrites else r"\.(building|unfinished|replaced)$"
    names = (name for _, folders, files in os.walk(folder) for name in (*folders, *files))
    left = [name for name in names if re.search(ends, name)]
    if left:
        return f"{shown} left {left[0]} behind"
    return _left_in_memory(shared, shown)


def _left_in_memory(before: set[str], shown: str) -> str:
    """Return what of ours stays in shared memory; the other trial's is there for a moment."""
    for _ in range(50):
        left = {name for name in os.listdir(SHARED_MEMORY) if name.startswith("and-dist-")}
        if not left - before:
            return ""
        time.sleep(0.2)
    return f"{shown} left {min(left - before)} in shared memory"


def trial(
    what: str,
    lay: Callable[[Path], object],
    commands: Sequence[Command] = (PREPARE,),
    named: Sequence[str] = ("photos", "out/"),
    limits: Limits = LIMITS,
) -> Trial:
    """Return a trial: `lay` fills photos/, then the commands run until one breaks."""

    def carry_out(folder: Path) -> str:
        if any("runs/debug" in command for command in commands):
            lay_run(folder)
        (folder / "photos").mkdir(exist_ok=True)
        lay(folder / "photos")
        found = (judge(command, folder, named, limits) for command in commands)
        return next(filter(None, found), "")

    return Trial(f"{what}; {' && '.join(' '.join(command) for command in commands)}", carry_out)
