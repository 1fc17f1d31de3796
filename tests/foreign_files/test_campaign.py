"""The part of the campaign that takes seconds; `make nightly` runs all of it.

Every command meets a file of somebody else's in the first place it writes to and in the last, and
things in every folder it writes to, all at once. Preparing is also killed at some of its changes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.foreign_files.campaign import (
    Case,
    Scene,
    find_places,
    run_all,
    run_case,
    run_kill,
)
from tests.foreign_files.plants import Plant
from tests.foreign_files.scenes import PREPARE, READ, TRAIN

pytestmark = pytest.mark.whole_run

QUICK = [*PREPARE[:2], *PREPARE[4:6], TRAIN[0], *READ[:5], READ[7]]
KILLED = PREPARE[:2]


@pytest.mark.parametrize("scene", QUICK, ids=lambda scene: scene.name)
def test_what_a_user_has_where_a_command_writes_is_still_there(
    scene: Scene, tmp_path: Path
) -> None:
    places, folders = find_places(scene, tmp_path / "first")
    files = [place for place in places if place not in folders]
    plants = [
        *(Plant("file", place) for place in (files[0], files[len(files) // 2], files[-1])),
        Plant("link to a file", files[-1]),
        Plant("folder", files[0]),
        *(Plant("files inside", folder) for folder in folders[-2:]),
        *(Plant("link to a folder", folder) for folder in folders[-1:]),
    ]
    cases = [Case(scene, plant, is_again) for plant in plants for is_again in (False, True)]
    tasks = [
        partial(run_case, case, tmp_path / f"case-{at}", tmp_path / "first")
        for at, case in enumerate(cases)
    ]
    assert run_all(tasks) == []


@pytest.mark.parametrize("scene", KILLED, ids=lambda scene: scene.name)
def test_what_was_killed_is_put_right_by_the_next_run(scene: Scene, tmp_path: Path) -> None:
    find_places(scene, tmp_path / "first")
    changes = len(scene.run(scene.laid(tmp_path / "counted")).touched)
    tasks = [
        partial(run_kill, scene, at, tmp_path / f"kill-{at}-{first is None}", first)
        for first in (None, tmp_path / "first")
        for at in range(2, changes, 4)
    ]
    assert run_all(tasks) == []
