"""python -m tests.mutants: whether a test fails when a line of the program is changed.

Takes a sample of all mutants of and_dist/method and and_dist/checkpoint, spread over the files as
their mutants are, and runs the tests that hold the file (tables.py) on each. The exit code is 0 if
every mutant is caught, or explained in explained.toml.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from tests.mutants.maker import Mutant, make_mutants
from tests.mutants.report import Trial, explain, print_table, print_trial, read_explanations
from tests.mutants.tables import LAST_RESORT, LEFT_OUT, PACKAGES, TESTS
from tests.mutants.workshop import Bench, Outcome, Workshop

ROOT = Path(__file__).parents[2]
LONGEST = 1800
"""CPU seconds that the tests of a file may take on the unchanged project."""


def all_mutants() -> list[Mutant]:
    """All mutants of all files."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).glob("*.py"))]
    mutants = []
    for path in files:
        file = str(path.relative_to(ROOT))
        left_out = LEFT_OUT.get(file, {})
        mutants += make_mutants(file, path.read_bytes(), left_out.__contains__)
    return mutants


def choose(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """A sample in which every file has its share, in the order of files and lines.

    A change of one line leaves the choice among the others as it was.
    """
    by_file: dict[str, list[Mutant]] = {}
    for mutant in mutants:
        by_file.setdefault(mutant.file, []).append(mutant)
    chosen: list[Mutant] = []
    for of_file in by_file.values():
        share = round(count * len(of_file) / len(mutants))
        chosen += sorted(of_file, key=lambda m: _digest(f"{seed} {m.name}"))[:share]
    return sorted(chosen)


def _digest(text: str) -> bytes:
    """Return a number by which mutants are put in an order that looks random."""
    return sha256(text.encode()).digest()


def only(mutants: Sequence[Mutant], places: Sequence[str]) -> list[Mutant]:
    """Return the mutants of some files or of their lines, each given as FILE or FILE:LINE."""
    return [m for m in mutants if m.file in places or f"{m.file}:{m.line}" in places]


def measure_unchanged(workshop: Workshop, tests: set[str], forks: bool) -> dict[str, float]:
    """Return the CPU seconds of each file of tests; raise RuntimeError where one fails."""

    def run(bench: Bench, path: str) -> Outcome:
        return bench.run_tests([path], LONGEST, forks)

    seconds = {}
    for path, outcome in workshop.each(run, sorted(tests)):
        if outcome.is_caught:
            raise RuntimeError(
                f"the unchanged project does not pass {path}: {outcome.what}\n"
                + outcome.log[-5000:]
            )
        print(f"unchanged: {path}: passed in {outcome.seconds:.0f} s", flush=True)
        seconds[path] = outcome.work
    return seconds


def try_each(
    workshop: Workshop, mutants: Sequence[Mutant], table: Mapping[str, Sequence[str]], forks: bool
) -> list[Trial]:
    """Run the tests of a table on every mutant that has some, and print a line about each."""
    mutants = [mutant for mutant in mutants if mutant.file in table]
    tests = {path for mutant in mutants for path in table[mutant.file]}
    seconds = measure_unchanged(workshop, tests, forks)

    def run(bench: Bench, mutant: Mutant) -> Outcome:
        paths = table[mutant.file]
        with bench.change(mutant):
            return bench.run_tests(paths, 60 + 3 * sum(seconds[path] for path in paths), forks)

    trials = []
    for mutant, outcome in workshop.each(run, mutants):
        trials.append(Trial(mutant, outcome))
        print_trial(trials[-1])
    return trials


def try_all(mutants: Sequence[Mutant], jobs: int) -> list[Trial]:
    """Run the tests on every mutant, and the end-to-end tests on those that survive."""
    with Workshop(ROOT, jobs) as workshop:
        trials = {trial.mutant: trial for trial in try_each(workshop, mutants, TESTS, forks=True)}
        survivors = [mutant for mutant, trial in trials.items() if not trial.outcome.is_caught]
        for trial in try_each(workshop, survivors, LAST_RESORT, forks=False):
            trials[trial.mutant] = trial
    return sorted(trials.values())


def main(arguments: Sequence[str]) -> int:
    """Try a sample of mutants; return 1 where one survives without an explanation."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--count", type=int, default=205, help="how many mutants are tried")
    parser.add_argument("--seed", type=int, default=0, help="which of them")
    parser.add_argument("--jobs", type=int, default=2, help="how many side by side")
    parser.add_argument("--list", action="store_true", help="print them and try none")
    parser.add_argument(
        "--only", metavar="FILE[:LINE]", action="append", help="all mutants of a file or line"
    )
    options = parser.parse_args(arguments)
    possible = all_mutants()
    if options.only:
        chosen = only(possible, options.only)
    else:
        chosen = choose(possible, options.count, options.seed)
    if not chosen:
        parser.error("no mutant is chosen; --list names them, and their files and lines")
    print(f"{len(possible)} mutants can be made, {len(chosen)} are chosen")
    if options.list:
        print(*chosen, sep="\n")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    began = time.monotonic()
    trials = try_all(chosen, options.jobs)
    unexplained = explain(trials, read_explanations())
    print_table(trials, unexplained, time.monotonic() - began)
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
