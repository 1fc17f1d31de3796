"""Measure cases in interleaved repeats, print one table and write one JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common.memory import extra_peak_mb
from benchmarks.common.rates import Rates, machine_rates
from benchmarks.common.results import Result, result_of

PACKAGES = ("torch", "torchvision", "nvidia-dali-cuda130", "faiss-gpu", "numpy", "pillow")
PEER_PACKAGES = ("lightly", "cut-cross-entropy")
"""Packages that are optional, and are compared with where they are installed."""
NOT_A_SIZE = ("--json", "--repeats")
"""Arguments with a value that do not change what is measured."""


@dataclass
class Benchmark:
    """Collect results and ratios, print them and write them to a file."""

    name: str
    device: str = "cpu"
    """The device that is measured: `cpu`, or `cuda`."""
    results: list[Result] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)
    """Baseline / ours; under floor_* ours / the least time that the machine allows."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Other figures and remarks, by name."""
    ratio_repeats: dict[str, list[float]] = field(default_factory=dict)
    """Each ratio in every repeat, where both sides have the same number of repeats."""
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    arguments: list[str] = field(default_factory=lambda: what_is_measured(sys.argv[1:]))

    @cached_property
    def rates_before(self) -> Rates:
        """Measure the machine's rates on first use, which has to be before the first repeat."""
        return machine_rates(self.threads)

    @cached_property
    def rates(self) -> Rates:
        """Return the machine's rates: the better of two measurements, before the first repeat and
        now."""
        before, after = self.rates_before, machine_rates(self.threads)
        return {name: max(before[name], after[name]) for name in before}

    @property
    def doubt(self) -> float:
        """Return how far both measurements were apart, for the rate that changed most."""
        return max(self.rates[name] / rate - 1 for name, rate in self.rates_before.items())

    def add(
        self,
        name: str,
        seconds: Sequence[float],
        work: float = 0,
        unit: str = "",
        peak_mb: float | None = None,
        notes: str = "",
    ) -> Result:
        """Add a result from the seconds of some repeats, and return it."""
        result = result_of(name, seconds, work, unit, peak_mb, notes)
        self.results.append(result)
        return result

    def measure(
        self,
        cases: dict[str, Callable[[], object]],
        repeats: int,
        work: dict[str, float],
        unit: str,
        warm_up: int = 1,
        measure_memory: bool = False,
    ) -> None:
        """Add the results of interleaved repeats; memory is measured in one additional run of each
        case."""
        _ = self.rates_before
        times = self.repeat(cases, repeats, warm_up)
        for name, case in cases.items():
            peak = extra_peak_mb(case) if measure_memory else None
            self.add(name, times[name], work[name], unit, peak)

    def repeat(
        self, cases: dict[str, Callable[[], object]], repeats: int, warm_up: int = 1
    ) -> dict[str, list[float]]:
        """Return the seconds of cases that run in turn, once each, again and again.

        So a slow minute of the machine affects all cases alike. On a GPU a case ends when its work
        is done.
        """
        times: dict[str, list[float]] = {name: [] for name in cases}
        for repeat in range(warm_up + repeats):
            for name, case in cases.items():
                started = time.perf_counter()
                case()
                if torch.cuda.is_initialized():
                    torch.cuda.synchronize()
                seconds = time.perf_counter() - started
                is_warm = repeat >= warm_up
                print(f"{name}: {seconds:.3f} s{'' if is_warm else ' to warm up'}", flush=True)
                if is_warm:
                    times[name].append(seconds)
        return times

    def result(self, name: str) -> Result:
        """Return a result by its name; raise KeyError if it was not measured."""
        return {result.name: result for result in self.results}[name]

    def seconds_per_unit(self, name: str) -> float:
        """Return the median seconds for one unit of work."""
        result = self.result(name)
        return result.median_s / (result.work or 1)

    def ratio(self, name: str, baseline: str, ours: str) -> None:
        """Add the ratio of two results, baseline / ours, by unit of work."""
        self.ratios[name] = self.seconds_per_unit(baseline) / self.seconds_per_unit(ours)
        above, below = self.result(baseline), self.result(ours)
        if len(above.seconds) == len(below.seconds):
            units = (below.work or 1) / (above.work or 1)
            self.ratio_repeats[name] = [
                a / b * units for a, b in zip(above.seconds, below.seconds, strict=True)
            ]

    def floor(self, name: str, ours: str, least_s: float, why: str) -> None:
        """Add the ratio of our fastest repeat to the least seconds that the machine allows."""
        result = self.result(ours)
        self.ratios[f"floor_{name}"] = result.min_s / least_s
        self.ratio_repeats[f"floor_{name}"] = [second / least_s for second in result.seconds]
        self.facts[f"floor_{name}"] = f"{ours}: {result.min_s:.4g} s over {least_s:.4g} s, {why}"

    def finish(self, file: Path | None) -> None:
        """Print everything, and write it to a file if one is given."""
        console = Console(width=130, highlight=False)
        console.print(self._as_table())
        for name, ratio in self.ratios.items():
            console.print(f"{name:>28}  {ratio:.2f}x")
        for name, fact in {**self.facts, **self.rates}.items():
            console.print(f"{name:>28}  {fact}", markup=False)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(self.as_json(), indent=1) + "\n")
            console.print(f"written to {file}")

    def _as_table(self) -> Table:
        table = Table(title=self.name, title_justify="left")
        for column in ("", "median s", "min s", "spread", "units/s", "peak MB", ""):
            table.add_column(column, justify="left" if not column else "right")
        for r in self.results:
            rate = f"{r.work / r.median_s:,.0f} {r.unit}/s" if r.work else ""
            peak = "" if r.peak_mb is None else f"{r.peak_mb:,.0f}"
            row = (f"{r.median_s:.4f}", f"{r.min_s:.4f}", f"{r.spread:.0%}", rate, peak, r.notes)
            table.add_row(r.name, *row)
        return table

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values, with machine and versions."""
        return {
            "benchmark": self.name,
            "device": self.device,
            "machine": describe_machine(),
            "arguments": self.arguments,
            "versions": versions(),
            "rates": self.rates,
            "doubt": self.doubt,
            "results": [asdict(result) for result in self.results],
            "ratios": self.ratios,
            "ratio_repeats": self.ratio_repeats,
            "facts": self.facts,
        }


def what_is_measured(given: Sequence[str]) -> list[str]:
    """Return the command's arguments without those that do not change what is measured."""
    found, rest = [], iter(given)
    for argument in rest:
        if argument in NOT_A_SIZE:
            next(rest, None)
        elif not argument.startswith(tuple(f"{name}=" for name in NOT_A_SIZE)):
            found.append(argument)
    return found


def versions() -> dict[str, str]:
    """Return the versions of the packages that are measured, as far as they are installed."""
    found = {name: metadata.version(name) for name in PACKAGES}
    for name in PEER_PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def describe_machine() -> dict[str, Any]:
    """Return the machine's processors, memory, GPUs, system and Python."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    gpus = {torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())}
    return {
        "cpu": ", ".join(sorted(models)),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": ", ".join(sorted(gpus)) or None,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def add_arguments(parser: argparse.ArgumentParser, repeats: int = 5) -> None:
    """Add the arguments that every benchmark takes."""
    parser.add_argument("--smoke", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--repeats", type=at_least_one, default=repeats)


def at_least_one(text: str) -> int:
    """Return an argument as a number; raise ArgumentTypeError if it is less than 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} will not do: 1 or more")
    return number


def parse_arguments(description: str) -> argparse.Namespace:
    """Return the arguments of a benchmark that takes no others."""
    parser = argparse.ArgumentParser(description=description)
    add_arguments(parser)
    return parser.parse_args()
