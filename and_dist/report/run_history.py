"""What a run's folder says of it: figures, starts and ends, incidents. No torch."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from and_dist.config.load import load_config
from and_dist.config.schema import Config
from and_dist.runs.folder import TIME, read_starts
from and_dist.runs.lock import is_held
from and_dist.runs.metrics_file import stream

Record = dict[str, Any]


@dataclass(frozen=True)
class Incident:
    """Something that befell a run."""

    when: float
    """Seconds since 1970."""
    kind: str
    """started, ended, went back, stalled or judged."""
    text: str


@dataclass(frozen=True)
class Start:
    """From one start of the processes to their end, as far as is known."""

    began: float
    ended: float
    how: str
    about: Record
    """As in environment.json."""


F64 = NDArray[np.float64]
STEP_KEYS = (
    "time",
    "round",
    "epoch",
    "step",
    "epochs",
    "loss",
    "lr",
    "images_per_s",
    "data_wait",
    "memory_mb",
)


@dataclass(frozen=True)
class History:
    name: str
    """Of the run; its folder, where runs beside it have the same name."""
    run: Path
    config: Config
    records: tuple[Record, ...]
    """Lines of metrics.jsonl, but those of steps."""
    steps: dict[str, F64]
    """STEP_KEYS -> the figure of every look at training; a run of days has a quarter of a million
    of them. Those that were not written down then are nan."""
    starts: tuple[Start, ...]
    incidents: tuple[Incident, ...]
    evaluations: tuple[Record, ...]
    """What `and-dist evaluate` has written, oldest checkpoint first."""

    def of(self, event: str) -> list[Record]:
        """All lines of metrics.jsonl of one kind, which is not `step`."""
        return [record for record in self.records if record["event"] == event]

    def last(self, event: str) -> Record:
        """The newest one, empty where there is none."""
        return (self.of(event) or [{}])[-1]

    @property
    def last_step(self) -> dict[str, float]:
        """The newest look at training, empty where there is none."""
        return {key: float(column[-1]) for key, column in self.steps.items() if len(column)}

    @property
    def ranks_of_steps(self) -> F64:
        """How many there were at every look at training."""
        if not self.starts:
            return np.ones(len(self.steps["time"]))
        began = np.array([start.began for start in self.starts])
        of_start = np.array([start.about["world_size"] for start in self.starts], float)
        at = np.searchsorted(began, self.steps["time"], side="right").clip(1) - 1
        return np.asarray(of_start[at])

    @property
    def state(self) -> str:
        """In a few words, such as `finished` or `training, round 2 of 4, epoch 7 of 20`."""
        if len(self.of("round")) > self.config.last_round:
            return "finished"
        if not self.last_step:
            return "not trained yet"
        round_index, epoch = int(self.last_step["round"]), int(self.last_step["epoch"])
        where = (
            f"round {round_index} of {self.config.last_round}, "
            f"epoch {epoch + 1} of {self.config.epochs_of(round_index)}"
        )
        how = self.starts[-1].how if self.starts else ""
        return f"at {where}, {how}" if how else f"training, {where}"


def read_history(run: Path) -> History:
    """ValueError for a folder that holds no run, or one that cannot be read."""
    if not (run / "config.yaml").exists():
        raise ValueError(f"{run} is no run folder: it has no config.yaml")
    config = load_config([run / "config.yaml"])
    try:
        metrics = run / "metrics.jsonl"
        records, steps = _sort_out(stream(metrics) if metrics.exists() else ())
        starts = _read_starts(run, np.append(steps["time"], [r.get("time", 0) for r in records]))
        judged = tuple(_read_verdicts(run))
        evaluations = tuple(_read_evaluations(run))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{run} cannot be read: {error}") from None
    found = [*_of_starts(starts), *_of_metrics(records), *_of_stalls(run), *judged]
    incidents = tuple(sorted(found, key=lambda incident: incident.when))
    return History(config.name, run, config, records, steps, starts, incidents, evaluations)


def seconds_of(text: str) -> float:
    return datetime.strptime(text, TIME).timestamp()


def _sort_out(lines: Iterable[Record]) -> tuple[tuple[Record, ...], dict[str, F64]]:
    columns = {key: array("d") for key in STEP_KEYS}
    others = []
    for record in lines:
        if record["event"] == "step":
            for key, column in columns.items():
                column.append(record.get(key, float("nan")))
        else:
            others.append(record)
    return tuple(others), {key: np.array(column) for key, column in columns.items()}


def _read_starts(run: Path, times: F64) -> tuple[Start, ...]:
    """A start that was killed ends, for all we know, with the last line before the next one."""
    abouts = read_starts(run)
    begins = [seconds_of(about["started"]) for about in abouts]
    starts = []
    for at, (about, began) in enumerate(zip(abouts, begins, strict=True)):
        is_newest = at + 1 == len(abouts)
        limit = float("inf") if is_newest else begins[at + 1]
        seen = times[(times >= began) & (times < limit)]
        if "ended" in about:
            starts.append(Start(began, seconds_of(about["ended"]), about["how"], about))
        else:
            how = "" if is_newest and is_held(run) else "ended without a word"
            starts.append(Start(began, float(np.max(np.append(seen, began))), how, about))
    return tuple(starts)


def _of_starts(starts: tuple[Start, ...]) -> list[Incident]:
    found = []
    for at, start in enumerate(starts):
        about = start.about
        where = f"{about['world_size']} rank(s) on {about['device']}, {about['host']}"
        goes_on = ""
        if "continued_from" in about:
            again = f", {about['steps_again']} steps again" if about.get("steps_again") else ""
            goes_on = f", from {about['continued_from']}{again}"
        found.append(Incident(start.began, "started", f"start {at + 1}: {where}{goes_on}"))
        if start.how:
            found.append(Incident(start.ended, "ended", f"start {at + 1}: {start.how}"))
    return found


def _of_metrics(records: tuple[Record, ...]) -> list[Incident]:
    return [
        Incident(
            record.get("time", 0.0),
            "went back",
            f"round {record['round']} epoch {record['epoch']} step {record['step']} was not "
            f"finite; went on without its {len(record['rows'])} images",
        )
        for record in records
        if record["event"] == "rolled_back"
    ]


def _of_stalls(run: Path) -> list[Incident]:
    """`--- 2026-11-21 10:00:00 +0000: nothing has moved for 600 s`, in a file of each rank."""
    found = []
    for file in sorted((run / "stalls").glob("rank-*.txt")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if match := re.fullmatch(r"--- (\S+ \S+ \S+): (.*)", line):
                when = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S %z").timestamp()
                found.append(Incident(when, "stalled", f"{file.stem}: {match[2]}"))
    return found


def _read_verdicts(run: Path) -> list[Incident]:
    """What and-launch made of the starts it gave."""
    found = []
    for file in sorted((run / "jobs").glob("*/start-*/end.json")):
        end = json.loads(file.read_text())
        text = f"job {file.parts[-3]}, {file.parts[-2]}: {end['state']}, {end['why']}"
        found.append(Incident(end["when"], "judged", text))
    return found


def _read_evaluations(run: Path) -> list[Record]:
    return [json.loads(file.read_text()) for file in sorted(run.glob("evaluation/*/*.json"))]
