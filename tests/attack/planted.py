"""Files of somebody else's, planted at random where commands write, which have to be there after.

tests/foreign_files plants every kind of thing in every place; here some are drawn.
"""

from __future__ import annotations

import random
import threading
from functools import cache
from pathlib import Path

from tests.attack.campaign import Kind, Trial
from tests.foreign_files.campaign import Case, Scene, cases_of, find_places, run_case
from tests.foreign_files.scenes import PREPARE, READ, TRAIN

SCENES = [*PREPARE, TRAIN[0], *(scene for scene in READ if scene.name != "plan")]
"""The scenes that write something."""
_ONE_BY_ONE = threading.Lock()


@cache
def prepared(name: str, root: Path) -> tuple[Path, list[Case]]:
    """The folder of a scene after an untouched run, and all its cases."""
    (scene,) = [scene for scene in SCENES if scene.name == name]
    folder = root / f"untouched {name}"
    return folder, cases_of(scene, *find_places(scene, folder))


def planted(scene: Scene, place: float) -> Trial:
    """Plant something in one of the places of a scene."""

    def carry_out(folder: Path) -> str:
        with _ONE_BY_ONE:
            first, cases = prepared(scene.name, folder.parent)
        return "; ".join(run_case(cases[int(place * len(cases))], folder / "case", first))

    return Trial(f"{scene.name}, something planted at {place:.4f} of its places", carry_out)


def draw(chance: random.Random) -> Trial:
    """Any scene, anything, anywhere."""
    return planted(chance.choice(SCENES), chance.random())


KIND = Kind("planted", weight=100, known=[], draw=draw)
