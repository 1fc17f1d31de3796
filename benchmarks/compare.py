"""python -m benchmarks.compare OLD.json NEW.json [--least 0.05]

What changed between two runs of a benchmark beyond noise. Repeats are compared by their ranks: were
they all independent, the interval of a change would hold it 99 times of 100. A verdict needs an
interval without 0 and a change of more than --least. Where the machine's own rates say that it was
faster or slower overall, that is taken out of the new times first. Exit status 1 if anything became
slower, 2 if the files cannot be compared.
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
"""Chance that an interval misses the change."""
LEAST = 0.05
"""A smaller change is none, whatever the repeats say."""
RATES = ("matrix_fp32_gflops", "matrix_bf16_gflops", "copy_gb_s", "decode_images_s")
GPU_RATES = ("gpu_matrix_fp32_gflops", "gpu_matrix_bf16_gflops", "gpu_copy_gb_s")
PARTS_OF_A_MACHINE = ("cpu", "cores", "memory_gb", "gpu")
TOO_FEW = "too few repeats"

Record = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """Of one figure; `factor` is new / old, and the interval is of that."""

    name: str
    old: str
    new: str
    factor: float
    interval: tuple[float, float] | None
    verdict: str


@dataclass(frozen=True)
class Machine:
    """How much faster it was in the new run, and how much its rates disagree about that."""

    faster: float
    doubt: float


def read(file: Path) -> Record:
    """A file that a benchmark wrote; ValueError says why it is none."""
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
    """The median of new / old over all pairs, and its interval by the rank-sum test; no interval
    where so few repeats cannot tell anything."""
    factors = sorted(after / before for before in old for after in new)
    rank = _rank_of_bound(len(old), len(new))
    interval = (factors[rank - 1], factors[-rank]) if rank else None
    return statistics.median(factors), interval


def _rank_of_bound(num_old: int, num_new: int) -> int:
    """How far from either end of all sorted pairs the interval ends; 0 where it has none."""
    rank, below, of_all = 0, 0, math.comb(num_old + num_new, num_old)
    while (below + _orders(rank, num_old, num_new)) / of_all <= ERROR / 2:
        below += _orders(rank, num_old, num_new)
        rank += 1
    return rank


@cache
def _orders(sum_of_ranks: int, num_old: int, num_new: int) -> int:
    """Orders of all repeats in which so many pairs have the new one below the old one."""
    if sum_of_ranks < 0:
        return 0
    if num_old == 0 or num_new == 0:
        return int(sum_of_ranks == 0)
    return _orders(sum_of_ranks - num_new, num_old - 1, num_new) + _orders(
        sum_of_ranks, num_old, num_new - 1
    )


def compare_machines(old: Record, new: Record) -> Machine:
    """By the rates that both runs measured of what they ran on: their median, if that is worth a
    correction, and the median distance from it, or how far apart two looks at the rates were
    within a run."""
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
    """Seconds of what both measured; the new ones as the old machine would have had them."""
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
    """Both sides of a ratio ran in one run, so the machine needs no correction; but floors are
    against its rates, and as doubtful as these."""
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
    """The first word where it grew, the second where it shrank."""
    if interval is None:
        return TOO_FEW
    if interval[0] > 1 and factor > 1 + least:
        return words[0]
    if interval[1] < 1 and factor < 1 / (1 + least):
        return words[1]
    return "the same"


def describe_differences(old: Record, new: Record, machine: Machine, least: float) -> list[str]:
    """What a reader has to know before the table."""
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
    """On what, and with which arguments."""
    given = " ".join(record.get("arguments", []))
    return f"on {record.get('device', 'cpu')} {f'with {given}' if given else 'in full'}"


def print_changes(console: Console, title: str, changes: Iterable[Change]) -> None:
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
    """Print what changed; whether anything became slower."""
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--least", type=float, default=LEAST, help="a smaller change is none")
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
