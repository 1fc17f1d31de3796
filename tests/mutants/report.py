"""Print what came of the mutants, and look up the explanations of those that survive."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.mutants.maker import Mutant
from tests.mutants.workshop import Outcome

EXPLAINED = Path(__file__).with_name("explained.toml")


class Trial(NamedTuple):
    """A mutant, and what the tests said of it."""

    mutant: Mutant
    outcome: Outcome


Explanations = dict[tuple[str, str, str], str]
"""(file, line, changed line) -> why no test sees it."""


def read_explanations(file: Path = EXPLAINED) -> Explanations:
    """Read which survivors are known, and why they are no fault of the tests."""
    entries = tomllib.loads(file.read_text()).get("mutant", [])
    return {(e["file"], e["before"], e["after"]): e["reason"] for e in entries}


def explain(trials: Sequence[Trial], explanations: Explanations) -> list[Mutant]:
    """Print the reasons of those that survive; return those without one."""
    unexplained = []
    for mutant, outcome in trials:
        if outcome.is_caught:
            continue
        reason = explanations.get(mutant.name)
        if reason is None:
            unexplained.append(mutant)
        else:
            print(f"\n{mutant}\n  explained: {reason}")
    return unexplained


def print_trial(trial: Trial) -> None:
    """Print one line about one mutant."""
    mutant, outcome = trial
    what = "SURVIVED" if outcome.what == "passed" else outcome.what
    by = f" in {outcome.test}" if outcome.test else ""
    print(f"{mutant}: {what}{by}, {outcome.seconds:.0f} s", flush=True)


def print_table(trials: Sequence[Trial], unexplained: Sequence[Mutant], seconds: float) -> None:
    """Print how many were caught in each file, and the survivors without an explanation."""
    for mutant in unexplained:
        print(f"\n{mutant.file}:{mutant.line} survived\n- {mutant.before}\n+ {mutant.after}")
    print(f"\n{'':44} mutants caught timed out share")
    for file in sorted({trial.mutant.file for trial in trials}):
        _print_row(file, [trial for trial in trials if trial.mutant.file == file])
    _print_row(f"all, in {seconds / 60:.0f} min", trials)
    survived = sum(not trial.outcome.is_caught for trial in trials)
    print(f"{survived} survived, {len(unexplained)} of them without an explanation")


def _print_row(name: str, trials: Sequence[Trial]) -> None:
    caught = sum(trial.outcome.is_caught for trial in trials)
    late = sum(trial.outcome.what == "timed out" for trial in trials)
    share = caught / max(1, len(trials))
    print(f"{name:44} {len(trials):7} {caught:6} {late:9} {share:5.0%}")
