"""Hold the seconds of one measured case, in the form in which benchmarks write them down.

It needs nothing but Python, for commands that run where only torch is installed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Result:
    """Hold the seconds of one case; `work` is the number of units that it does in that time."""

    name: str
    median_s: float
    min_s: float
    spread: float
    """(slowest - fastest) / median of the repeats."""
    work: float = 0
    unit: str = ""
    peak_mb: float | None = None
    """The most memory that the case held above the memory in use before it."""
    notes: str = ""
    seconds: list[float] = field(default_factory=list)
    """Seconds of every repeat, in their order."""


def result_of(
    name: str,
    seconds: Sequence[float],
    work: float = 0,
    unit: str = "",
    peak_mb: float | None = None,
    notes: str = "",
) -> Result:
    """Return a result from the seconds of some repeats."""
    median = statistics.median(seconds)
    spread = (max(seconds) - min(seconds)) / median
    return Result(name, median, min(seconds), spread, work, unit, peak_mb, notes, list(seconds))
