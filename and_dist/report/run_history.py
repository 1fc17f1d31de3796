"""Read a run's history from its folder: metrics, starts and ends, incidents. No torch."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from and_dist.config.schema import Config
from and_dist.runs.folder import config_of, read_starts, say_if_cut
from and_dist.runs.lock import is_held
from and_dist.runs.metrics_file import stream
from and_dist.runs.records import TIME, Verdict, read_evaluation, read_if_sound, say_damage
from and_dist.utils.formatting import as_text
from and_dist.utils.plain_files import read_plain

Record = dict[str, Any]


@dataclass(frozen=True)
class Incident:
    """Describe an event in a run's life, such as a start or a stall."""

    when: float
    """The time in seconds since 1970."""
    kind: str
    """One of: started, ended, went back, stalled, judged."""
    text: str


@dataclass(frozen=True)
class Start:
    """Describe one start of the run's processes until they ended."""

    began: float
    ended: float
    """The time of the end, or of the last known line of metrics.jsonl."""
    how: str
    """The reason for the end; "" while the processes are alive."""
    about: Record
    """The entry of this start in environment.json."""


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
"""The keys of a step's line in metrics.jsonl that are kept."""


@dataclass(frozen=True)
class History:
    """Hold the history of one run."""

    name: str
    """The name of the run, or its folder if a run that it is compared with has the same name."""
    run: Path
    config: Config
    records: tuple[Record, ...]
    """All lines of metrics.jsonl except those of steps."""
    steps: dict[str, F64]
    """A key of STEP_KEYS -> its values at all logged steps, NaN if a line lacks the key. They are
    arrays, because a run of days logs a quarter of a million steps."""
    starts: tuple[Start, ...]
    incidents: tuple[Incident, ...]
    evaluations: tuple[Record, ...]
    """The files that `and-dist evaluate` has written, oldest checkpoint first."""

    def of(self, event: str) -> list[Record]:
        """Return all lines of metrics.jsonl with this event, which is not `step`."""
        return [record for record in self.records if record["event"] == event]

    def last(self, event: str) -> Record:
        """Return the newest line with this event, or {}."""
        return (self.of(event) or [{}])[-1]

    @property
    def names_of_baselines(self) -> dict[str, str]:
        """Return what is evaluated before training: a key of its record -> its name."""
        return {"raw_pixels": "raw pixels", "random": self.config.encoder.at_first}

    @property
    def last_step(self) -> dict[str, float]:
        """Return the newest logged step, or {}."""
        return {key: float(column[-1]) for key, column in self.steps.items() if len(column)}

    @property
    def ranks_of_steps(self) -> F64:
        """Return the number of ranks at every logged step."""
        if not self.starts:
            return np.ones(len(self.steps["time"]))
        began = np.array([start.began for start in self.starts])
        of_start = np.array([start.about["world_size"] for start in self.starts], float)
        at = np.searchsorted(began, self.steps["time"], side="right").clip(1) - 1
        return np.asarray(of_start[at])

    @property
    def state(self) -> str:
        """Return the run's state, such as `finished` or `training, round 2 of 4, epoch 7 of 20`."""
        if any(record["round"] == self.config.last_round for record in self.of("round")):
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
    """Read the history of a run; raise ValueError if the folder holds no run or is unreadable."""
    config = config_of(run)
    try:
        metrics = run / "metrics.jsonl"
        lines = _of_rounds(stream(metrics), config.last_round) if metrics.exists() else ()
        records, steps = _sort_out(lines)
        starts = _read_starts(run, np.append(steps["time"], [r.get("time", 0) for r in records]))
        judged = tuple(_read_verdicts(run))
        evaluations = tuple(_read_evaluations(run))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{run} cannot be read: {error}") from None
    found = [*_of_starts(starts), *_of_metrics(records), *_of_stalls(run), *judged]
    incidents = tuple(sorted(found, key=lambda incident: incident.when))
    return History(config.name, run, config, records, steps, starts, incidents, evaluations)


def share_in(record: Record, key: str) -> float | None:
    """Return a share between 0 and 1 from a record, or None if it holds none by this key.

    A revision may write keys that `runs.records` does not check.
    """
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= 1 else None


def share_consistent(record: Record) -> float | None:
    """Return the share of consistent pairs of a discovery, or None without labels or pairs."""
    if record["consistent"] is None or record["inconsistent"] is None:
        return None
    pairs = record["consistent"] + record["inconsistent"]
    return record["consistent"] / pairs if pairs else None


def seconds_of(text: str) -> float:
    """Return the seconds since 1970 of a time in environment.json."""
    return datetime.strptime(text, TIME).timestamp()


def _sort_out(lines: Iterable[Record]) -> tuple[tuple[Record, ...], dict[str, F64]]:
    """Return (lines other than steps, the steps' values by key)."""
    columns = {key: array("d") for key in STEP_KEYS}
    others = []
    for record in lines:
        if record["event"] == "step":
            for key, column in columns.items():
                column.append(record.get(key, float("nan")))
        else:
            others.append(record)
    return tuple(others), {key: np.array(column) for key, column in columns.items()}


def _of_rounds(lines: Iterable[Record], last_round: int) -> Iterator[Record]:
    """Yield the lines of the rounds that the config has; say how many are of others."""
    num_others = 0
    for record in lines:
        if record.get("round", 0) > last_round:
            num_others += 1
        else:
            yield record
    if num_others:
        say_damage(
            f"{num_others} line(s) of metrics.jsonl are left out: they tell of rounds after round "
            f"{last_round}, the last in config.yaml"
        )


def _read_starts(run: Path, times: F64) -> tuple[Start, ...]:
    """Return the starts in order; `times` are those of all lines of metrics.jsonl.

    A killed start has left no time of its end, so its last line of metrics.jsonl stands for it.
    """
    abouts = read_starts(run)
    say_if_cut(run, abouts)
    begins = [seconds_of(about["started"]) for about in abouts]
    starts = []
    for at, (about, began) in enumerate(zip(abouts, begins, strict=True)):
        is_newest = at + 1 == len(abouts)
        limit = float("inf") if is_newest else begins[at + 1]
        seen = times[(times >= began) & (times < limit)]
        if about["ended"] is not None:
            starts.append(Start(began, seconds_of(about["ended"]), about["how"], about))
        else:
            how = "" if is_newest and is_held(run) else "ended without a word"
            starts.append(Start(began, float(np.max(np.append(seen, began))), how, about))
    return tuple(starts)


def _of_starts(starts: tuple[Start, ...]) -> list[Incident]:
    """Return the beginning and the known end of each start as incidents."""
    found = []
    for at, start in enumerate(starts):
        about = start.about
        where = f"{about['world_size']} rank(s) on {about['device']}, {about['host']}"
        goes_on = ""
        if about["continued_from"] is not None:
            again = f", {about['steps_again']} steps again" if about["steps_again"] else ""
            goes_on = f", from {about['continued_from']}{again}"
        found.append(Incident(start.began, "started", f"start {at + 1}: {where}{goes_on}"))
        if start.how:
            found.append(Incident(start.ended, "ended", f"start {at + 1}: {start.how}"))
    return found


def _of_metrics(records: tuple[Record, ...]) -> list[Incident]:
    """Return the steps that were not finite and were rolled back as incidents."""
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
    """Return the stalls that the ranks have written to their files.

    Their line is like `--- 2026-11-21 10:00:00 +0000: nothing has moved for 600 s`.
    """
    found = []
    for file in sorted((run / "stalls").glob("rank-*.txt")):
        for line in read_plain(file, "replace").splitlines():
            if match := re.fullmatch(r"--- (\S+ \S+ \S+): (.*)", line):
                try:
                    when = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S %z").timestamp()
                except ValueError:
                    say_damage(f"a line of {file} is left out: {as_text(match[1])} is no time")
                    continue
                found.append(Incident(when, "stalled", f"{file.stem}: {as_text(match[2])}"))
    return found


def _read_verdicts(run: Path) -> list[Incident]:
    """Return and-launch's verdicts on the starts of its jobs as incidents."""
    found = []
    for file in sorted((run / "jobs").glob("*/start-*/end.json")):
        if end := read_if_sound(file, Verdict):
            text = f"job {file.parts[-3]}, {file.parts[-2]}: {end['state']}, {end['why']}"
            found.append(Incident(end["when"], "judged", text))
    return found


def _read_evaluations(run: Path) -> list[Record]:
    """Return the results of `and-dist evaluate`, sorted by checkpoint."""
    return [
        found
        for file in sorted(run.glob("evaluation/*/*.json"))
        if (found := read_evaluation(file)) is not None
    ]
