"""Attack the disks: full, read-only, broken or over quota at any call, and launchers that are lost.

Calls fail by a library (faults.c), at the n-th change of the scene's folder; where it cannot be
compiled, real file systems that fill up are left, and where nobody may mount one, killed launchers.
Each command is then run again undisturbed: it has to end well, leave nothing unfinished and, where
it trains, with the weights and metrics of an undisturbed run.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.attack.campaign import Kind, Trial
from tests.attack.disks import commands as scenes
from tests.attack.disks.commands import Scene
from tests.attack.disks.faults import Fault, can_inject
from tests.attack.disks.judge import num_calls, try_fault
from tests.attack.disks.lost import kill_in_the_cache, lose_launcher
from tests.attack.disks.mounts import can_mount, try_read_only, try_small
from tests.attack.disks.resumed import RESUMED, RESUMED_2

NOSPC, QUOTA, READ_ONLY, BROKEN = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO
ERRORS = (NOSPC, QUOTA, READ_ONLY, BROKEN)
RUN = "runs/debug/"
TRAININGS = (*scenes.TRAININGS, RESUMED, RESUMED_2)

IN_TRAINING = (
    *((scene, Fault(error)) for error in ERRORS for scene in (scenes.TRAIN, scenes.TRAIN_2)),
    (scenes.TRAIN, Fault(NOSPC, place=RUN + ".environment.json")),
    (scenes.TRAIN, Fault(READ_ONLY, place=RUN + "metrics.jsonl")),
    (scenes.TRAIN_2, Fault(READ_ONLY, place=RUN + "metrics.jsonl")),
    (scenes.TRAIN, Fault(NOSPC, place=RUN + "checkpoints")),
    (scenes.TRAIN_2, Fault(NOSPC, place=RUN + "checkpoints")),
    (scenes.TRAIN, Fault(QUOTA, place=RUN + ".summary.json")),
    (scenes.TRAIN, Fault(NOSPC, place=RUN + "lock")),
    # Metrics are cut.
    *(
        (scene, Fault(error, place=RUN + "metrics.jsonl", kinds="t"))
        for scene in (scenes.TRAIN, scenes.TRAIN_2)
        for error in (BROKEN, READ_ONLY)
    ),
    # Metrics are appended, and flushed.
    (scenes.TRAIN, Fault(BROKEN, 5, place=RUN + "metrics.jsonl", kinds="w")),
    (scenes.TRAIN_2, Fault(BROKEN, 5, place=RUN + "metrics.jsonl", kinds="w")),
    (scenes.TRAIN_2, Fault(BROKEN, place=RUN + "metrics.jsonl", kinds="f")),
    (scenes.TRAIN_SKIP, Fault(NOSPC, place=RUN + ".bad_images.txt")),
    (scenes.TRAIN_SKIP_2, Fault(NOSPC, place=RUN + ".bad_images.txt")),
    (scenes.TRAIN_SKIP_2, Fault(READ_ONLY, place=RUN + ".bad_images.txt")),
    # One rank alone.
    (scenes.TRAIN_2, Fault(NOSPC, place=RUN + "checkpoints", rank="1")),
    # What a run is taken back to, and that it was.
    (RESUMED, Fault(BROKEN, place=RUN + "metrics.jsonl", kinds="t")),
    (RESUMED_2, Fault(READ_ONLY, place=RUN + "metrics.jsonl", kinds="t")),
    (RESUMED, Fault(NOSPC, 3, place=RUN + ".environment.json")),
    (RESUMED_2, Fault(NOSPC, 3, place=RUN + ".environment.json")),
    # The cache.
    (scenes.TRAIN_CACHE, Fault(NOSPC, place="/dev/shm/", kinds="mw")),
    (scenes.TRAIN_CACHE_2, Fault(NOSPC, place="/dev/shm/", kinds="mw")),
    (scenes.TRAIN_CACHE_2, Fault(BROKEN, place="/dev/shm/", kinds="ow", rank="1")),
    # The launcher.
    *((scenes.LOCAL, Fault(error)) for error in (NOSPC, READ_ONLY)),
    *(
        (scenes.LOCAL, Fault(NOSPC, place=RUN + place))
        for place in ("logs", "logs/rank-0.log", "jobs/001/start-", "jobs/001/code")
    ),
    (scenes.LOCAL, Fault(NOSPC, 30)),
)
KILLED_IN_THE_CACHE = (("w", 1), ("r", 1), ("o", 1))
"""Kinds of calls, as in faults.c, and the number of the one in which a rank is killed."""


def known() -> Iterator[Trial]:
    """Yield what broke earlier revisions."""
    if can_inject():
        yield from (_of_fault(scene, fault) for scene, fault in IN_TRAINING)
        for scene in scenes.OTHERS:
            yield _of_fault(scene, Fault(NOSPC))
        for scene in scenes.OTHERS[::3]:
            yield _of_fault(scene, Fault(READ_ONLY))
        for kind, first in KILLED_IN_THE_CACHE:
            what = f"train from a cache by 2 ranks: SIGKILL at change {first} ({kind}) of /dev/shm"
            yield Trial(what, partial(kill_in_the_cache, kind, first))
    if can_mount():
        for scene in (scenes.TRAIN, scenes.LOCAL, *scenes.OTHERS[::4]):
            yield Trial(f"{scene.name}: no room at all", partial(try_small, scene, 0, 0))
        yield Trial("train: read-only", partial(try_read_only, scenes.TRAIN))
        yield Trial("local: read-only", partial(try_read_only, scenes.LOCAL))
    for after in (0.5, 4.0, 12.0):
        yield Trial(f"local: SIGKILL after {after} s", partial(lose_launcher, after))


def draw(chance: random.Random) -> Trial:
    """Draw a command, an error and the call that gets it, or a small disk, or a lost launcher."""
    ways = [_draw_lost]
    ways += [_draw_small] * 2 if can_mount() else []
    ways += [_draw_fault] * 7 if can_inject() else []
    return chance.choice(ways)(chance)


def _draw_fault(chance: random.Random) -> Trial:
    scene = chance.choice(TRAININGS if chance.random() < 0.6 else scenes.OTHERS)
    error, share, is_once = chance.choice(ERRORS), chance.random(), chance.random() < 0.3
    rank = chance.choice("01") if scene.has_ranks and chance.random() < 0.5 else ""
    what = f"{scene.name}: {errno.errorcode[error]} after {share:.0%} of the changes"
    what += (", once" if is_once else "") + (f", rank {rank}" if rank else "")

    def carry_out(folder: Path) -> str:
        first = 1 + int(share * num_calls(scene, error))
        fault = Fault(error, first, is_once, rank=rank)
        broke = try_fault(scene, fault, folder)
        return broke and f"{fault}: {broke}"

    return Trial(what, carry_out)


def _draw_small(chance: random.Random) -> Trial:
    scene = chance.choice((*TRAININGS, *scenes.OTHERS))
    pages, names = int(10 ** chance.uniform(0, 3)), int(10 ** chance.uniform(0, 2))
    if chance.random() < 0.5:
        return Trial(f"{scene.name}: room for {pages} pages", partial(try_small, scene, pages, 0))
    return Trial(f"{scene.name}: room for {names} names", partial(try_small, scene, 0, names))


def _draw_lost(chance: random.Random) -> Trial:
    after = round(chance.uniform(0.0, 15.0), 1)
    return Trial(f"local: SIGKILL after {after} s", partial(lose_launcher, after))


def _of_fault(scene: Scene, fault: Fault) -> Trial:
    return Trial(f"{scene.name}: {fault}", lambda folder: try_fault(scene, fault, folder))


KIND = Kind("disks", 45, tuple(known()), draw)
