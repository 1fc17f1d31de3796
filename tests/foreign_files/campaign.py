"""Plant a user's things at and in every place that a command writes to, and look what is left.

A scene is a folder and a command. It is run once untouched to learn which places it writes to. For
every place and every kind of thing, the scene is then laid again, the thing is planted, the command
is run, and the thing has to be there to the byte. Whatever the command decides, it ends with an
exit status of 0, 1 or 2 and without a traceback. Commands that build folders are also killed at
each of their changes, and have to end well when they are run again.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.foreign_files.child import KILLED, Outcome, run_command
from tests.foreign_files.plants import AT, IN, MAKERS, Plant, describe, losses, plant

TOKEN = re.compile(r"[0-9a-f]{16}|[0-9]{10}\.[0-9]+|\b[0-9]{8}_[0-9]{6}\b")
"""Names with these in them are other names at the next run: nobody can have a file there."""


@dataclass(frozen=True)
class Scene:
    """`lay` makes what the command needs in an empty folder; `command` is run in that folder."""

    name: str
    command: tuple[str, ...]
    lay: Callable[[Path], None]
    prepare: Callable[[], None] | None = None
    """Called in the command's process first."""
    source: tuple[str, ...] = ()
    """Places that the command only reads: nothing is planted there, and all of it has to stay."""
    below: tuple[str, ...] = ("",)
    """Says where things are planted; other scenes have the rest."""
    kinds: tuple[str, ...] = tuple(MAKERS)
    """Says what is planted; a command that takes long has fewer."""

    def run(self, folder: Path, kill_at: int | None = None) -> Outcome:
        return run_command(self.command, folder, self.prepare, kill_at)

    def laid(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        self.lay(folder)
        return folder


@dataclass(frozen=True)
class Case:
    """One thing planted before the first run of a scene's command, or between the first and the
    second."""

    scene: Scene
    plant: Plant
    is_again: bool

    def __str__(self) -> str:
        when = "before the second run" if self.is_again else "before"
        return f"{self.scene.name}: {self.plant}, {when}"


def find_places(scene: Scene, folder: Path) -> tuple[list[Path], list[Path]]:
    """Return (all places that a command writes to, those that are folders), relative."""
    scene.laid(folder)
    before = set(_below(folder))
    outcome = scene.run(folder)
    assert outcome.status == 0, f"{scene.name}: {outcome.said}"
    places = {
        path.relative_to(folder) for path in (*outcome.touched, *(set(_below(folder)) - before))
    }
    kept = sorted(
        place
        for place in places
        if str(place).startswith(scene.below)
        and not str(place).startswith(scene.source or ("\0",))
        and not TOKEN.search(str(place))
        and "code" not in place.parts
    )
    parents = {parent for place in kept for parent in place.parents if str(parent) != "."}
    folders = sorted(place for place in {*kept, *parents} if describe(folder / place) == "folder")
    return [p for p in sorted({*kept, *folders}) if str(p).startswith(scene.below)], folders


def cases_of(scene: Scene, places: Sequence[Path], folders: Sequence[Path]) -> list[Case]:
    """Return a case for every place, every kind of thing, and before both runs."""
    plants = [Plant(kind, place) for place in places for kind in AT]
    plants += [Plant(kind, place) for place in folders for kind in IN]
    chosen = [what for what in plants if what.kind in scene.kinds]
    return [Case(scene, what, is_again) for what in chosen for is_again in (False, True)]


def run_case(case: Case, folder: Path, first: Path) -> list[str]:
    """Return what went wrong. `first` is the scene's folder after an untouched first run."""
    try:
        if case.is_again:
            shutil.copytree(first, folder, symlinks=True)
        else:
            case.scene.laid(folder)
        expected = plant(folder, case.plant) | sources_of(case.scene, folder)
        outcome = case.scene.run(folder)
        wrong = [*losses(expected), *filter(None, [outcome.exceeded])]
        if outcome.status not in (0, 1, 2):
            wrong.append(f"it ended with status {outcome.status}: {outcome.said[-300:]}")
        if "Traceback" in outcome.said:
            wrong.append(f"it ended in a traceback: {outcome.said[-600:]}")
        if outcome.status == 0:
            # Run again, as a user would: what was spared once is spared twice.
            outcome = case.scene.run(folder)
            wrong += [f"at the next run, {loss}" for loss in losses(expected)]
        return [f"{case}: {what}" for what in wrong]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sources_of(scene: Scene, folder: Path) -> dict[str, object]:
    """Return what a command reads and may never change."""
    paths = [path for name in scene.source for path in _below(folder / name)]
    return {str(path): describe(path) for path in paths}


def run_kill(scene: Scene, at: int, folder: Path, first: Path | None) -> list[str]:
    """Kill a command at its n-th change, then run it again: it ends well, and leaves no leftovers.

    Over `first`, the folder after an earlier run, the places it wrote are there all the time.
    """
    try:
        if first is None:
            scene.laid(folder)
        else:
            shutil.copytree(first, folder, symlinks=True)
        killed = scene.run(folder, kill_at=at)
        wrong = []
        if killed.status not in (KILLED, 0):
            wrong.append(f"killed, it ended with {killed.status}: {killed.said[-300:]}")
        again = scene.run(folder)
        if again.status != 0:
            wrong.append(f"run again, it ended with {again.status}: {again.said[-600:]}")
        left = [
            p for p in _below(folder) if re.search(r"\.(building|replaced|unfinished)$", p.name)
        ]
        wrong += [f"{path.relative_to(folder)} was left behind" for path in left]
        return [f"{scene.name}, killed at change {at}: {what}" for what in wrong]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_all(tasks: Sequence[Callable[[], list[str]]], at_once: int = 2) -> list[str]:
    """Run tasks side by side; return everything that went wrong."""
    with ThreadPoolExecutor(at_once) as threads:
        return [what for found in threads.map(lambda task: task(), tasks) for what in found]


def _below(folder: Path) -> Iterator[Path]:
    for base, folders, names in os.walk(folder):
        yield from (Path(base, name) for name in (*folders, *names))
