"""One language for all benchmarks: interleaved repeats, one table, one JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = ("torch", "torchvision", "nvidia-dali-cuda130", "faiss-gpu", "numpy", "pillow")


@dataclass
class Result:
    """Seconds of one thing measured; `work` is how many units of it those seconds did."""

    name: str
    median_s: float
    min_s: float
    spread: float
    """(slowest - fastest) / median of the repeats."""
    work: float = 0
    unit: str = ""
    peak_mb: float | None = None
    notes: str = ""


@dataclass
class Benchmark:
    """Collects results and ratios, prints them and writes them down."""

    name: str
    results: list[Result] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def measure(
        self,
        cases: dict[str, Callable[[], object]],
        repeats: int,
        work: dict[str, float],
        unit: str,
        warm_up: int = 1,
    ) -> None:
        """Every case once, then again, and so on: a slow minute of the machine hits all alike."""
        times: dict[str, list[float]] = {name: [] for name in cases}
        for repeat in range(warm_up + repeats):
            for name, case in cases.items():
                started = time.perf_counter()
                case()
                seconds = time.perf_counter() - started
                is_warm = repeat >= warm_up
                print(f"{name}: {seconds:.3f} s{'' if is_warm else ' to warm up'}", flush=True)
                if is_warm:
                    times[name].append(seconds)
        for name, seconds in times.items():
            median = statistics.median(seconds)
            spread = (max(seconds) - min(seconds)) / median
            self.results.append(Result(name, median, min(seconds), spread, work[name], unit))

    def result(self, name: str) -> Result:
        return next(result for result in self.results if result.name == name)

    def seconds_per_unit(self, name: str) -> float:
        result = self.result(name)
        return result.median_s / result.work

    def finish(self, file: Path | None) -> None:
        table = Table(title=self.name, title_justify="left")
        for column in ("", "median s", "min s", "spread", "units/s", "peak MB", ""):
            table.add_column(column, justify="left" if not column else "right")
        for r in self.results:
            rate = f"{r.work / r.median_s:,.0f} {r.unit}/s" if r.work else ""
            peak = "" if r.peak_mb is None else f"{r.peak_mb:,.0f}"
            row = (f"{r.median_s:.4f}", f"{r.min_s:.4f}", f"{r.spread:.0%}", rate, peak, r.notes)
            table.add_row(r.name, *row)
        console = Console(width=130, highlight=False)
        console.print(table)
        for name, ratio in self.ratios.items():
            console.print(f"{name:>28}  {ratio:.2f}x")
        for name, fact in self.facts.items():
            console.print(f"{name:>28}  {fact}")
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(self.as_json(), indent=1) + "\n")
            console.print(f"written to {file}")

    def as_json(self) -> dict[str, Any]:
        return {
            "benchmark": self.name,
            "machine": describe_machine(),
            "versions": {name: metadata.version(name) for name in PACKAGES},
            "results": [asdict(result) for result in self.results],
            "ratios": self.ratios,
            "facts": self.facts,
        }


def describe_machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return {
        "cpu": ", ".join(sorted(models)),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def add_arguments(parser: argparse.ArgumentParser, repeats: int = 5) -> None:
    """What every benchmark understands."""
    parser.add_argument("--smoke", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--repeats", type=int, default=repeats)


def parse_arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    add_arguments(parser)
    return parser.parse_args()
