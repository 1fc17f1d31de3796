"""Compute the goodput of a run: the share of its time in which it trains, and what takes the rest.

The time runs from the run's first start to its last sign of life. It is lost to these causes:

detection    from the last sign of life of a start to the decision that it has ended
queue        from the decision to the beginning of the next job or start of a job
restart      until the ranks' processes have begun
load         until images, network and checkpoint are loaded
steps_again  the time of steps, and of what was between them, that were trained and not saved
save         waiting for checkpoints to be copied, and for the one before
discovery    finding the neighbourhoods of a round

Where nobody decides about an end, as under torchrun alone, detection and queue are in the restart.
Starts of earlier revisions did not write when they began to train. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from and_dist.runs.records import Verdict, read_record
from and_dist.utils.formatting import format_seconds

CAUSES = ("detection", "queue", "restart", "load", "steps_again", "save", "discovery")


@dataclass(frozen=True)
class Goodput:
    """Hold how long a run has taken, and the seconds lost to each cause."""

    seconds: float
    lost: Mapping[str, float]

    @property
    def share(self) -> float:
        """Return the share of the time in which the run has trained what counts."""
        return max(0.0, 1 - sum(self.lost.values()) / self.seconds) if self.seconds > 0 else 1.0

    def describe(self) -> str:
        """Return one line: the share, and the causes from the dearest on."""
        dearest = sorted(self.lost.items(), key=lambda item: -item[1])
        parts = [f"{cause.replace('_', ' ')} {_in_words(seconds)}" for cause, seconds in dearest]
        rest = f", lost to {', '.join(parts)}" if parts else ""
        return f"{100 * self.share:.1f} % of {_in_words(self.seconds)}{rest}"


class Tally:
    """Adds up the events of metrics.jsonl that say what training waited for."""

    def __init__(self, records: Iterable[Mapping[str, Any]] = ()) -> None:
        """Count the events so far."""
        self.lost = {"save": 0.0, "discovery": 0.0}
        self.last_time = 0.0
        for record in records:
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """Count one event."""
        self.last_time = max(self.last_time, record.get("time", 0.0))
        if record["event"] == "checkpoint":
            self.lost["save"] += record.get("waited_seconds", 0.0)
        elif record["event"] == "discovery":
            self.lost["discovery"] += record.get("seconds", 0.0)


def goodput(
    starts: Sequence[Mapping[str, Any]], tally: Tally, decided: Sequence[float] = ()
) -> Goodput | None:
    """Return the goodput of a run, or None before its first start has loaded everything.

    `starts` are those of environment.json, `decided` the times at which and-launch decided that a
    start had ended.
    """
    timed = [start for start in starts if start.get("loaded")]
    if not timed:
        return None
    lost = dict.fromkeys(CAUSES, 0.0) | tally.lost
    for before, start in zip([None, *timed], timed, strict=False):
        lost["load"] += start["loaded"] - start["began"]
        lost["steps_again"] += start.get("seconds_again", 0.0)
        if before is not None:
            silent = max(start.get("silent_since", 0.0), before["loaded"])
            for cause, seconds in _split(silent, start, decided).items():
                lost[cause] += seconds
    until = max(tally.last_time, timed[-1]["loaded"])
    found = {cause: seconds for cause, seconds in lost.items() if seconds > 0}
    return Goodput(until - timed[0]["began"], found)


def _in_words(seconds: float) -> str:
    """Return a duration, with a decimal where it is short."""
    return f"{seconds:.1f} s" if seconds < 60 else format_seconds(seconds)


def read_decisions(run: Path) -> list[float]:
    """Return the times at which and-launch decided that a start of its jobs had ended.

    They are few without the right to look into RUN/jobs, or where a file is damaged.
    """
    found = []
    for file in run.glob("jobs/*/start-*/end.json"):
        with suppress(OSError, ValueError):
            found.append(float(read_record(file, Verdict)["when"]))
    return sorted(found)


def _split(silent: float, start: Mapping[str, Any], decided: Sequence[float]) -> dict[str, float]:
    """Return the causes of the time between the last sign of life of a start and the next start.

    Starts in between that loaded nothing belong to it.
    """
    began = start["began"]
    job_began = start.get("job_began") or began
    ends = [when for when in decided if silent <= when <= job_began]
    if not ends:
        return {"restart": max(0.0, began - silent)}
    return {
        "detection": ends[0] - silent,
        "queue": job_began - ends[0],
        "restart": began - job_began,
    }
