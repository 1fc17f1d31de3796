"""Trials of the attack: what each does, what counts as broken, and how many of each kind there are.

A trial gets an empty folder and returns what broke, or "" if the program held. A program holds if
it does what it was asked for, or refuses with a message that names what is wrong. It breaks if it
ends in a traceback or by a signal, never ends, takes more memory than the trial allows, or is
silent where something is wrong.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Trial:
    """One attack; `what` tells a reader how to repeat it by hand."""

    what: str
    carry_out: Callable[[Path], str]


@dataclass(frozen=True)
class Kind:
    """A kind of attack."""

    name: str
    weight: int
    """How many of the trials of a whole campaign are of this kind."""
    known: Sequence[Trial]
    """The attacks that broke an earlier revision. They come first, and take turns by the seed."""
    draw: Callable[[random.Random], Trial]
    """Draws any other trial at random."""

    def trials(self, count: int, seed: int) -> Iterator[Trial]:
        """Yield trials: half of them known ones while there are any, the others drawn."""
        chance = random.Random(f"{self.name} {seed}")
        known = chance.sample(list(self.known), len(self.known))
        for number in range(count):
            yield known.pop() if known and number % 2 == 0 else self.draw(chance)


@dataclass(frozen=True)
class Verdict:
    """What became of a trial."""

    kind: str
    what: str
    broke: str
    seconds: float


def shares(kinds: Sequence[Kind], num_trials: int) -> dict[str, int]:
    """Return how many trials each kind gets: in proportion to its weight, and one at least."""
    total = sum(kind.weight for kind in kinds)
    return {kind.name: max(1, round(num_trials * kind.weight / total)) for kind in kinds}


def carry_out(kind: Kind, trial: Trial, folder: Path) -> Verdict:
    """Carry out a trial in a folder of its own; an exception that leaves it counts as broken."""
    folder.mkdir(parents=True)
    began = time.monotonic()
    try:
        broke = trial.carry_out(folder)
    except Exception as error:
        broke = f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        # shutil.rmtree() would end in a RecursionError where folders lie a thousand deep.
        subprocess.run(["rm", "-rf", folder], check=True)
    return Verdict(kind.name, trial.what, broke, time.monotonic() - began)


def run_campaign(
    kinds: Sequence[Kind],
    num_trials: int,
    seed: int,
    root: Path,
    at_once: int,
    only_known: bool = False,
) -> Iterator[Verdict]:
    """Yield the verdict on each trial of all kinds."""
    counts = shares(kinds, num_trials)
    tasks = [
        (kind, trial, root / f"{kind.name}-{number}")
        for kind in kinds
        for number, trial in enumerate(
            kind.known if only_known else kind.trials(counts[kind.name], seed)
        )
    ]
    with ThreadPoolExecutor(at_once) as threads:
        yield from threads.map(lambda task: carry_out(*task), tasks)


def summarise(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return how many trials of each kind held and broke, and how long they took."""
    figures: dict[str, Any] = {}
    for verdict in verdicts:
        of_kind = figures.setdefault(verdict.kind, {"held": 0, "broke": 0, "seconds": 0.0})
        of_kind["broke" if verdict.broke else "held"] += 1
        of_kind["seconds"] = round(of_kind["seconds"] + verdict.seconds, 1)
    return figures
