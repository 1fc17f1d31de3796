"""The commands that are disturbed, each in a folder of its own, and how they ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from benchmarks.common.memory import family_of
from tests.attack.disks.faults import can_inject, library
from tests.foreign_files.scenes import DEBUG, PROBES, TINY, lay_bad_photos, lay_photos, lay_run
from tests.pictures import cut_pixels, picture, save, save_pictures

MARK = "AND_DIST_ATTACKED"
"""The variable by which all processes of a trial are found, whoever is their parent now."""
MOST_SECONDS = 300.0
"""The time of a command that ends, on a machine that others use too."""
RUN = Path("runs/debug")


@dataclass(frozen=True)
class Scene:
    """A command, and what its folder needs."""

    name: str
    command: tuple[str, ...]
    lay: Callable[[Path], None]

    @property
    def is_training(self) -> bool:
        """Return whether the command trains a run, and so goes on after any end."""
        return "train" in self.command or "local" in self.command

    @property
    def has_ranks(self) -> bool:
        """Return whether torchrun has the last word: it ends with 1 whatever its ranks end with."""
        return self.command[0] == "torchrun"


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    status: int
    said: str
    exceeded: str


class Command:
    """A command that runs in its folder; its output goes to FOLDER.said, beside it."""

    def __init__(
        self, scene: Scene, folder: Path, environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._said = folder.with_name(f"{folder.name}.said")
        told = {"OMP_NUM_THREADS": "1", "COLUMNS": "400", MARK: str(folder), **environment}
        asked = {"command": scene.command, "folder": str(folder), "environment": told}
        self._zygote = _zygote()
        assert self._zygote.stdin
        assert self._zygote.stdout
        self._zygote.stdin.write(json.dumps({**asked, "output": str(self._said)}) + "\n")
        self._zygote.stdin.flush()
        self.pid = int(self._zygote.stdout.readline())

    def finish(self, seconds: float = MOST_SECONDS) -> Ended:
        """Wait for the command; kill it and all that it started if it takes too much."""
        exceeded = ""

        def give_up() -> None:
            nonlocal exceeded
            exceeded = f"it took more than {seconds:.0f} s"
            kill(family_of(self.pid))

        # No guard of memory: each of its looks walks all pages, and a full disk takes no memory.
        timer = threading.Timer(seconds, give_up)
        timer.start()
        assert self._zygote.stdout
        status = int(self._zygote.stdout.readline())
        timer.cancel()
        return Ended(status, self._said.read_text(errors="replace"), exceeded)


def run(scene: Scene, folder: Path, environment: Mapping[str, str] = MappingProxyType({})) -> Ended:
    """Run a scene's command to its end."""
    return Command(scene, folder, environment).finish()


_of_thread = threading.local()


def _zygote() -> subprocess.Popen[str]:
    """Return this thread's process that forks commands."""
    if not hasattr(_of_thread, "zygote"):
        preload = {"LD_PRELOAD": str(library())} if can_inject() else {}
        _of_thread.zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.attack.disks.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path.cwd()), **preload},
        )
    return _of_thread.zygote


def left_running(folder: Path, seconds: float) -> list[int]:
    """Return the processes of a trial that still run after some seconds, and kill them."""
    deadline = time.monotonic() + seconds
    while (found := _marked(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    kill(found)
    return found


def kill(pids: Iterable[int]) -> None:
    """Kill processes, some of which may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _marked(folder: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = f"{MARK}={folder}\0".encode() in (path / "environ").read_bytes()
        except OSError:
            continue
        if is_ours:
            found.append(int(path.name))
    return found


def lay_trees(folder: Path) -> None:
    """Lay 40 photos in two classes, to train on, in photos/."""
    save_pictures(folder / "photos", [(24, 18)] * 20, "ab", ["png"])


def lay_trees_with_a_bad_one(folder: Path) -> None:
    """Lay the same with one whose pixels are cut, which only decoding shows."""
    lay_trees(folder)
    cut_pixels(save(folder / "photos" / "a" / "zz.jpg", picture(9, (40, 30))))


def lay_nothing(_: Path) -> None:
    """Leave the folder empty."""


PHOTOS = ("data.train=photos", "data.test=null", "data.limit=null", "data.limit_test=null")
SKIP = (*PHOTOS, "data.bad_images=skip")
CACHE = (*PHOTOS, "data.cache_gb=1")


def _train(name: str, lay: Callable[[Path], None], *overrides: str, ranks: int = 1) -> Scene:
    program = ("and-dist",) if ranks == 1 else ("torchrun",)
    return Scene(name, (*program, "train", "--config", DEBUG, *TINY, *overrides), lay)


def _of_run(*arguments: str) -> Scene:
    return Scene(" ".join(arguments[:1]), ("and-dist", *arguments), lay_run)


def _prepare(name: str, lay: Callable[[Path], None], *options: str) -> Scene:
    command = ("and-dist", "prepare", "photos", "--out", "out", "--workers", "1", *options)
    return Scene(name, command, lay)


TRAIN = _train("train", lay_nothing)
TRAIN_2 = _train("train by 2 ranks", lay_nothing, ranks=2)
TRAIN_SKIP = _train("train without a bad image", lay_trees_with_a_bad_one, *SKIP)
TRAIN_SKIP_2 = _train(
    "train without a bad image by 2 ranks", lay_trees_with_a_bad_one, *SKIP, ranks=2
)
TRAIN_CACHE = _train("train from a cache", lay_trees, *CACHE)
TRAIN_CACHE_2 = _train("train from a cache by 2 ranks", lay_trees, *CACHE, ranks=2)
LOCAL = Scene(
    "local", ("and-launch", "local", "--workers", "2", "--config", DEBUG, *TINY), lay_nothing
)
OTHERS = (
    _prepare("prepare", lay_photos),
    _prepare("prepare --pack", lay_photos, "--pack"),
    _prepare("prepare --raw", lay_bad_photos, "--raw", "9", "--bad-images", "skip"),
    _of_run("report", "runs/debug"),
    _of_run("evaluate", "runs/debug", "--knn"),
    Scene(
        "evaluate --linear",
        ("and-dist", "evaluate", "runs/debug", "--linear", *PROBES),
        lay_run,
    ),
    _of_run("discover", "runs/debug"),
    _of_run("export", "runs/debug"),
    Scene(
        "export --format safetensors",
        ("and-dist", "export", "runs/debug", "--format", "safetensors", "--out", "left"),
        lay_run,
    ),
    _of_run("embed", "runs/debug", "photos", "--out", "features.npy"),
    _of_run("neighbours", "runs/debug", "photos/a/0.jpg", "--sheet", "sheet.png"),
    _of_run("table", "runs/debug", "--out", "table.md"),
)
TRAININGS = (TRAIN, TRAIN_2, TRAIN_SKIP, TRAIN_SKIP_2, TRAIN_CACHE, LOCAL)
