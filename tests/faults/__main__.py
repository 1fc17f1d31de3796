"""python -m tests.faults --trials N --seed S [--json FILE]

The fault campaign: real torchrun workers train a small run, one of them or all are killed, told to
stop or frozen at a chosen kind of moment, and the same command is given again until it is done.
Then weights, momentum, bank, table and metrics have to equal an undisturbed run's to the bit.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.disturb import FAULTS, HUNG, MOMENTS, SECONDS_A_START, Run
from tests.ranks.runs import difference

MOST_STARTS = 6
MOST_DRAWS = 5
"""A fault may come too late for its run, or hit a process that has just ended: it is drawn anew."""


@dataclass
class Trial:
    """One fault, and what became of it."""

    fault: str
    moment: str
    is_struck: bool = False
    starts: int = 0
    exits: list[int] = field(default_factory=list)
    is_finished: bool = False
    is_equal: bool = False
    steps_again: int = 0
    recovery_s: float | None = None
    """From the fault to the first step that a later start has logged."""
    difference: str = ""


def carry_out(trial: Trial, root: Path, name: str, chance: random.Random, whole: Run) -> None:
    """Start, disturb once, start again until the run is done, compare."""
    run = Run(root, name)
    run.start()
    trial.starts = 1
    if MOMENTS[trial.moment](run, chance):
        trial.is_struck = FAULTS[trial.fault](run, chance)
        trial.exits.append(_until_done(trial, run, time.monotonic(), run.num_starts()))
    else:
        trial.exits.append(run.wait())
    trial.is_finished = trial.exits[-1] == 0 and HUNG not in trial.exits
    if trial.is_finished:
        trial.difference = difference(run.folder, whole.folder)
        trial.is_equal = not trial.difference
        starts = json.loads((run.folder / "environment.json").read_text())
        trial.steps_again = sum(start.get("steps_again", 0) for start in starts)


def _until_done(trial: Trial, run: Run, struck: float, starts_before: int) -> int:
    """Exit status of the last start; watches for the first step of a later one."""
    while True:
        step: int | None = None
        deadline = time.monotonic() + SECONDS_A_START
        while run.is_running() and trial.recovery_s is None and time.monotonic() < deadline:
            if run.num_starts() > starts_before:
                now = run.last_step()
                if step is not None and now > step:
                    trial.recovery_s = time.monotonic() - struck
                step = now
            time.sleep(0.02)
        status = run.wait()
        if status == 0 or trial.starts == MOST_STARTS:
            return status
        trial.exits.append(status)
        run.start()
        trial.starts += 1


def run_campaign(num_trials: int, seed: int, root: Path) -> dict[str, Any]:
    whole = Run(root, "undisturbed")
    whole.start()
    if whole.wait() != 0:
        raise RuntimeError(f"the undisturbed run failed:\n{whole.log.read_text()}")
    num_steps = whole.last_step()
    chance = random.Random(seed)
    pairs = [(fault, moment) for fault in FAULTS for moment in MOMENTS]
    order = [pair for _ in range(-(-num_trials // len(pairs))) for pair in chance.sample(pairs, 30)]
    trials = [Trial(*pair) for pair in order[:num_trials]]
    for number, trial in enumerate(trials):
        for draw in range(MOST_DRAWS):
            name = f"trial{number:03}-{draw}"
            carry_out(trial, root, name, random.Random(f"{seed}/{number}/{draw}"), whole)
            if trial.is_struck or not trial.is_equal:
                break
            trials[number] = trial = Trial(trial.fault, trial.moment)
        print(f"{number + 1}/{num_trials} {_in_one_line(trial)}", flush=True)
        if trial.is_equal:
            shutil.rmtree(root / name)
    return _figures(trials, num_steps, seed)


def _in_one_line(trial: Trial) -> str:
    recovery = "" if trial.recovery_s is None else f", next step after {trial.recovery_s:.1f} s"
    outcome = "equal" if trial.is_equal else trial.difference or "NOT FINISHED"
    outcome += "" if trial.is_struck else " BUT NOT STRUCK"
    return (
        f"{trial.fault}, {trial.moment}: {outcome}, exits {trial.exits}, "
        f"{trial.steps_again} steps again{recovery}"
    )


def _figures(trials: list[Trial], num_steps: int, seed: int) -> dict[str, Any]:
    again = sum(trial.steps_again for trial in trials)
    useful = num_steps * len(trials)
    recoveries = [trial.recovery_s for trial in trials if trial.recovery_s is not None]
    return {
        "trials": len(trials),
        "struck": sum(trial.is_struck for trial in trials),
        "finished": sum(trial.is_finished for trial in trials),
        "equal": sum(trial.is_equal for trial in trials),
        "goodput": useful / (useful + again),
        "recovery_s": statistics.median(recoveries) if recoveries else None,
        "longest_recovery_s": max(recoveries, default=None),
        "steps_a_run": num_steps,
        "faults": Counter(trial.fault for trial in trials),
        "moments": Counter(trial.moment for trial in trials),
        "seed": seed,
        "each": [asdict(trial) for trial in trials],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = run_campaign(given.trials, given.seed, Path(folder))
    text = json.dumps(figures, indent=1)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(text + "\n")
    print(json.dumps({k: v for k, v in figures.items() if k != "each"}, indent=1))
    sys.exit(0 if figures["equal"] == figures["struck"] == figures["trials"] else 1)


if __name__ == "__main__":
    main()
