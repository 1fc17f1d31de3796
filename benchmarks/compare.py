"""Compare two runs of a benchmark, and report changes that are larger than the noise.

    python -m benchmarks.compare OLD.json NEW.json [--least 0.05]

Repeats are compared by their ranks: if they were independent, the interval of a change would
contain it 99 times of 100. A verdict needs an interval without 0 and a change of more than --least.
Where the machine's own rates show that it was faster or slower overall, the new times are corrected
for that first. The exit code is 1 if anything became slower, 2 if the files cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ERROR = 0.01
"""The probability that an interval does not contain the change."""
LEAST = 0.05
"""The smallest change that is reported, whatever the repeats show."""
RATES = ("matrix_fp32_gflops", "matrix_bf16_gflops", "copy_gb_s", "decode_images_s")
GPU_RATES = ("gpu_matrix_fp32_gflops", "gpu_matrix_bf16_gflops", "gpu_copy_gb_s")
PARTS_OF_A_MACHINE = ("cpu", "cores", "memory_gb", "gpu")
TOO_FEW = "too few repeats"

Record = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """Hold the change of one figure; `factor` is new / old, and `interval` is that of the
    factor."""

    name: str
    old: str
    new: str
    factor: float
    interval: tuple[float, float] | None
    verdict: str


@dataclass(frozen=True)
class Machine:
    """Hold how much faster the machine was in the new run, and how much its rates disagree on
    that."""

    faster: float
    doubt: float


def read(file: Path) -> Record:
    """Return a file that a benchmark wrote; raise ValueError with the reason if it is not one."""
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise ValueError(f"{file} cannot be read: {why}") from None
    has_results = isinstance(record, dict) and isinstance(record.get("results"), list)
    if not has_results or not all("seconds" in result for result in record["results"]):
        raise ValueError(f"{file} holds no repeats of a benchmark; measure it again with --json")
    return dict(record)


def compare_repeats(
    old: Sequence[float], new: Sequence[float]
) -> tuple[float, tuple[float, float] | None]:
    """Return the median of new / old over all pairs, and its interval by the rank-sum test.

    The interval is None where there are too few repeats for one.
    """
    factors = sorted(after / before for before in old for after in new)
    rank = _rank_of_bound(len(old), len(new))
    interval = (factors[rank - 1], factors[-rank]) if rank else None
    return statistics.median(factors), interval


def _rank_of_bound(num_old: int, num_new: int) -> int:
    """Return how far from either end of all sorted pairs the interval ends; 0 if there is none."""
    rank, below, of_all = 0, 0, math.comb(num_old + num_new, num_old)
    while (below + _orders(rank, num_old, num_new)) / of_all <= ERROR / 2:
        below += _orders(rank, num_old, num_new)
        rank += 1
    return rank


@cache
def _orders(sum_of_ranks: int, num_old: int, num_new: int) -> int:
    """Return how many orders of all repeats have `sum_of_ranks` pairs with the new one below the
    old."""
    if sum_of_ranks < 0:
        return 0
    if num_old == 0 or num_new == 0:
        return int(sum_of_ranks == 0)
    return _orders(sum_of_ranks - num_new, num_old - 1, num_new) + _orders(
        sum_of_ranks, num_old, num_new - 1
    )


def compare_machines(old: Record, new: Record) -> Machine:
    """Return how much faster the machine was, by the rates that both runs measured.

    That is the median of the rates' changes, or 1 if it is too small to correct for. The doubt is
    the median distance from it, or how far two measurements of the rates within a run were apart.
    """
    both = old.get("rates", {}), new.get("rates", {})
    names = GPU_RATES if new.get("device") == "cuda" else RATES
    changes = [math.log(both[1][r] / both[0][r]) for r in names if r in both[0] and r in both[1]]
    if not changes:
        return Machine(1.0, 0.0)
    middle = statistics.median(changes)
    distance = math.expm1(statistics.median(abs(change - middle) for change in changes))
    doubt = max(distance, old.get("doubt", 0.0), new.get("doubt", 0.0))
    is_other = abs(middle) > math.log1p(LEAST)
    return Machine(math.exp(middle) if is_other else 1.0, doubt)


def compare_results(old: Record, new: Record, machine: Machine, least: float) -> list[Change]:
    """Return the changes of the seconds in both runs, after correcting the new ones for the
    machine."""
    least = max(least, machine.doubt)
    changes = []
    for before, after in _in_both(_by_name(old), _by_name(new)):
        texts = f"{before['median_s']:.4g} s", f"{after['median_s']:.4g} s"
        seconds = [second * machine.faster for second in after["seconds"]]
        factor, interval = compare_repeats(before["seconds"], seconds)
        verdict = judge(interval, factor, least, ("slower", "faster"))
        if before["work"] != after["work"]:
            interval, verdict = None, "other size"
        changes.append(Change(after["name"], *texts, factor, interval, verdict))
    return changes


def compare_ratios(old: Record, new: Record, machine: Machine, least: float) -> list[Change]:
    """Return the changes of the ratios in both runs.

    Both sides of a ratio ran in one run, so they need no correction for the machine. Floors are
    ratios to the machine's rates, and as doubtful as these.
    """
    repeats = old.get("ratio_repeats", {}), new.get("ratio_repeats", {})
    changes = []
    for name in (name for name in old["ratios"] if name in new["ratios"]):
        before, after = old["ratios"][name], new["ratios"][name]
        factor, interval, verdict = after / before, None, "no repeats"
        if name in repeats[0] and name in repeats[1]:
            factor, interval = compare_repeats(repeats[0][name], repeats[1][name])
            is_floor = name.startswith("floor")
            larger_is = ("worse", "better") if is_floor else ("better", "worse")
            enough = max(least, machine.doubt) if is_floor else least
            verdict = judge(interval, factor, enough, larger_is)
        texts = f"{before:.3g}x", f"{after:.3g}x"
        changes.append(Change(name, *texts, factor, interval, verdict))
    return changes


def judge(
    interval: tuple[float, float] | None, factor: float, least: float, words: tuple[str, str]
) -> str:
    """Return the first word if the figure grew, the second if it shrank, or that neither is
    certain."""
    if interval is None:
        return TOO_FEW
    if interval[0] > 1 and factor > 1 + least:
        return words[0]
    if interval[1] < 1 and factor < 1 / (1 + least):
        return words[1]
    return "the same"


def describe_differences(old: Record, new: Record, machine: Machine, least: float) -> list[str]:
    """Return sentences on differences of machine, versions and rates between the runs."""
    lines = []
    if old.get("benchmark") != new.get("benchmark"):
        lines.append(f"Different benchmarks: {old.get('benchmark')} and {new.get('benchmark')}.")
    for what, names in (("machine", PARTS_OF_A_MACHINE), ("versions", [*old["versions"]])):
        sides = [{name: record[what].get(name) for name in names} for record in (old, new)]
        found = [f"{n} {sides[0][n]} -> {sides[1][n]}" for n in names if sides[0][n] != sides[1][n]]
        if found:
            of = "Different machines" if what == "machine" else "Different versions"
            lines.append(f"{of}: {', '.join(found)}.")
    if machine.faster != 1:
        how = "faster" if machine.faster > 1 else "slower"
        speed = f"{max(machine.faster, 1 / machine.faster) - 1:.0%} {how}"
        lines.append(
            f"By its own rates the machine was {speed} in the new run; times are compared after "
            "taking that out."
        )
    if machine.doubt > least:
        lines.append(
            f"The rates disagree by {machine.doubt:.0%} about how much faster it was; a smaller "
            "change of times is none."
        )
    return lines


def describe_way(record: Record) -> str:
    """Return the device and the arguments of a run."""
    given = " ".join(record.get("arguments", []))
    return f"on {record.get('device', 'cpu')} {f'with {given}' if given else 'in full'}"


def print_changes(console: Console, title: str, changes: Iterable[Change]) -> None:
    """Print a table of changes."""
    table = Table(title=title, title_justify="left")
    for column in ("", "old", "new", "change", "99 % interval", "verdict"):
        table.add_column(column, justify="left" if column in ("", "verdict") else "right")
    for c in changes:
        interval = f"{_percent(c.interval[0])} to {_percent(c.interval[1])}" if c.interval else ""
        table.add_row(c.name, c.old, c.new, _percent(c.factor), interval, c.verdict)
    console.print(table, markup=False)


def _percent(factor: float) -> str:
    return f"{factor - 1:+.1%}"


def _by_name(record: Record) -> dict[str, Record]:
    return {result["name"]: result for result in record["results"]}


def _in_both(old: dict[str, Record], new: dict[str, Record]) -> list[tuple[Record, Record]]:
    return [(old[name], new[name]) for name in old if name in new]


def compare(files: tuple[Path, Path], least: float, console: Console) -> bool:
    """Print all changes; return whether anything became slower. Raise ValueError if nothing
    compares."""
    old, new = (read(file) for file in files)
    ways = [describe_way(record) for record in (old, new)]
    if ways[0] != ways[1]:
        raise ValueError(
            f"{files[0]} was measured {ways[0]} and {files[1]} {ways[1]}: measure both alike"
        )
    machine = compare_machines(old, new)
    changes = compare_results(old, new, machine, least)
    if not changes:
        raise ValueError(f"{files[0]} and {files[1]} have no result in common")
    for line in describe_differences(old, new, machine, least):
        console.print(line, markup=False)
    print_changes(console, str(new.get("benchmark")), changes)
    if ratios := compare_ratios(old, new, machine, least):
        print_changes(console, "ratios", ratios)
    for number, here in enumerate((old, new)):
        missing = sorted(set(_by_name(here)) - set(_by_name((new, old)[number])))
        if missing:
            console.print(f"Only in {files[number]}: {'; '.join(missing)}", markup=False)
    slower = [change.name for change in changes if change.verdict == "slower"]
    console.print(f"slower: {'; '.join(slower) or 'nothing'}", markup=False)
    return bool(slower)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two files and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument(
        "--least", type=float, default=LEAST, help="the smallest change that is reported"
    )
    given = parser.parse_args(arguments)
    try:
        is_slower = compare(
            (given.old, given.new), given.least, Console(width=130, highlight=False)
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return int(is_slower)


if __name__ == "__main__":
    sys.exit(main())
