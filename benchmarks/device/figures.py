"""Collect the figures of one step of the battery, and write them where it looks for them.

A step of part 1 has torch alone, so this module needs nothing else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.results import Result, result_of


class Figures:
    """Prints each result as soon as it is there, and writes all of them to a file."""

    def __init__(self, file: Path | None) -> None:
        """Take the file to write, None for none."""
        self._file = file
        self._results: list[Result] = []
        self._facts: dict[str, Any] = {}

    def time(
        self,
        cases: dict[str, Callable[[], object]],
        repeats: int,
        work: float,
        unit: str,
        warm_up: int = 2,
    ) -> None:
        """Time cases by turns, each until its work is done, and then the memory that each takes."""
        seconds: dict[str, list[float]] = {name: [] for name in cases}
        for repeat in range(warm_up + repeats):
            for name, case in cases.items():
                torch.cuda.synchronize()
                begun = time.perf_counter()
                case()
                torch.cuda.synchronize()
                if repeat >= warm_up:
                    seconds[name].append(time.perf_counter() - begun)
        for name, case in cases.items():
            self.add(result_of(name, seconds[name], work, unit, extra_mb(case)))

    def add(self, result: Result) -> None:
        """Add a result and print it."""
        self._results.append(result)
        rate = f", {result.work / result.median_s:,.0f} {result.unit}/s" if result.work else ""
        memory = "" if result.peak_mb is None else f", {result.peak_mb:,.0f} MB more"
        least = f"least {1e3 * result.min_s:.3f} of {len(result.seconds)}"
        print(f"{result.name}: {1e3 * result.median_s:.3f} ms ({least}){rate}{memory}", flush=True)
        self._write()

    def note(self, name: str, fact: object) -> None:
        """Add another figure or a remark, and print it."""
        self._facts[name] = fact
        print(f"{name}: {fact}", flush=True)
        self._write()

    def _write(self) -> None:
        """Write what there is: a step that runs out of time keeps what it has measured."""
        if self._file is not None:
            results = [asdict(result) for result in self._results]
            content = {"results": results, "facts": self._facts}
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps(content, indent=1) + "\n")


def extra_mb(case: Callable[[], object]) -> float:
    """Return the most megabytes of a GPU that a case allocates above what was in use before it."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    case()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6
