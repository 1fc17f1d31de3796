"""Runs that were killed after their first checkpoint, and are disturbed as they go on."""

from __future__ import annotations

import atexit
import shutil
import signal
import threading
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from tests.attack.disks.commands import RUN, TRAIN, TRAIN_2, run
from tests.attack.disks.faults import Fault, Injection

AT_THE_END = Fault(-signal.SIGKILL, place=str(RUN / ".summary.json"))
_lock = threading.Lock()


def lay_interrupted(folder: Path) -> None:
    """Lay a run whose last checkpoints are gone, as if it had been killed before them."""
    with _lock:
        shutil.copytree(_interrupted() / "runs", folder / "runs")


@cache
def _interrupted() -> Path:
    folder = Path(mkdtemp(prefix="and-dist-interrupted-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    place = folder / "scene"
    place.mkdir()
    injection = Injection(AT_THE_END, place)
    ended = run(TRAIN, place, injection.environment())
    assert ended.status == -signal.SIGKILL, ended.said
    checkpoints = place / RUN / "checkpoints"
    first, *later = sorted(path for path in checkpoints.iterdir() if path.is_dir())
    for path in later:
        shutil.rmtree(path)
    (checkpoints / "latest").write_text(f"{first.name}\n")
    return place


RESUMED = replace(TRAIN, name="resume", lay=lay_interrupted)
RESUMED_2 = replace(TRAIN_2, name="resume by 2 ranks", lay=lay_interrupted)
