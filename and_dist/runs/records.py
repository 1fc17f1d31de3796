"""Read and write the records of a run folder, which may be damaged or foreign. No torch.

All that is read here is compared with its seal (utils/seals.py) and with a schema. Readers leave
out what is damaged, and say so once.

Code that reads a validated record finds the keys that it needs, with values of the right kind and
size. Keys that are not listed here may hold anything.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from and_dist.distributed.launch_env import is_rank_zero
from and_dist.utils.formatting import as_text
from and_dist.utils.owned_files import IsOurs, write_file
from and_dist.utils.plain_files import read_plain
from and_dist.utils.seals import seal, unseal

log = logging.getLogger(__name__)
LONGEST_TEXT = 10_000
TIME = "%Y-%m-%dT%H:%M:%S%z"
"""The form of a time in environment.json."""


def _check_time(text: str) -> str:
    """Return a time of environment.json; raise ValueError for another text."""
    if datetime.strptime(text, TIME).timestamp() < 0:
        raise ValueError(f"{text} is no time of ours")
    return text


Count = Annotated[int, Field(ge=0, le=10**12)]
Figure = Annotated[float, Field(ge=-1e30, le=1e30, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
"""A time since 1970, or how long something took."""
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(max_length=LONGEST_TEXT), pydantic.AfterValidator(as_text)]
"""A text without anything that could control a terminal."""
Word = Annotated[Text, Field(max_length=200)]
When = Annotated[Word, pydantic.AfterValidator(_check_time)]
Plain = bool | int | float | Word | None | list[Any]
DEEPEST = 20
"""The most containers within each other in a file of ours."""
NAN = float("nan")
TOO_DEEP = "it is nested too deeply"


class Record(BaseModel):
    """Hold the keys of a record that are read by name."""

    model_config = ConfigDict(strict=True, extra="allow")


class Event(Record):
    """Hold a line of metrics.jsonl."""

    event: Word
    time: Seconds = 0.0


class Step(Event):
    """Hold the state of training at a step; what an earlier revision did not write is NaN."""

    round: Count
    epoch: Count
    step: Count
    epochs: float = NAN
    loss: float = NAN
    lr: float = NAN
    images_per_s: float = NAN
    data_wait: float = NAN
    memory_mb: float = NAN


class BankFigures(Event):
    """Hold what is measured of the bank while training; None without labels, or not measured."""

    probe_bank: Share | None = None
    mean_norm: Share | None = None
    spread: Share | None = None
    neighbour_entropy: Share | None = None


class Epoch(BankFigures):
    """Hold the figures of an epoch."""

    round: Count
    epoch: Count
    loss: float
    lr: float
    knn_bank: Share | None = None


class Round(BankFigures):
    """Hold the figures of a round."""

    round: Count
    anchors: Count
    consistency: Share | None
    knn_bank: Share | None
    knn: Share | None
    seconds: Seconds = 0.0


class Baselines(Event):
    """Hold the accuracies before anything was trained."""

    raw_pixels: Share | None = None
    random: Share | None = None
    seconds: Seconds = 0.0


class Entropies(Record):
    """Hold the histograms of the entropies of all rows and of the anchors."""

    low: Figure
    high: Figure
    mean: Figure
    mean_of_anchors: Figure | None = None
    rows: Annotated[list[Count], Field(min_length=1, max_length=10_000)]
    anchors: Annotated[list[Count], Field(min_length=1, max_length=10_000)]

    @pydantic.model_validator(mode="after")
    def check_lengths(self) -> Entropies:
        """Raise ValueError unless both histograms have the same bins."""
        if len(self.rows) != len(self.anchors) or self.high < self.low:
            raise ValueError("its histograms have other bins")
        return self


class Discovery(Event):
    """Hold the figures of a discovery."""

    round: Count
    anchors: Count
    consistent: Count | None
    inconsistent: Count | None
    seconds: Seconds = 0.0
    consistency_by_entropy: Annotated[list[Share], Field(max_length=1000)] | None = None
    entropy: Entropies


class Checkpoint(Event):
    """Hold how long a checkpoint took, and how long training waited for it."""

    seconds: Seconds = 0.0
    waited_seconds: Seconds = 0.0


class LostBatch(Event):
    """Hold the place and rows of a batch whose loss or gradient was not finite."""

    round: Count
    epoch: Count
    step: Count
    rows: list[int]


class Start(Record):
    """Hold an entry of environment.json."""

    started: When
    ended: When | None = None
    how: Text = ""
    world_size: Annotated[int, Field(ge=1, le=10**6)]
    device: Word
    host: Word
    packages: dict[Word, Word] = Field(default_factory=dict)
    continued_from: Word | None = None
    steps_again: Count = 0
    began: Seconds = 0.0
    """When the process of rank 0 began; 0 is not known."""
    job_began: Seconds | None = None
    loaded: Seconds = 0.0
    """When everything was loaded that the start goes on from; 0 is not known, or not yet."""
    silent_since: Seconds = 0.0
    """When the start before this one gave its last sign of life, as far as metrics.jsonl says."""
    seconds_again: Seconds = 0.0
    """The time of training that was not saved, and is done again."""
    metrics_bytes: Count | None = None
    """The size of metrics.jsonl when the start ended."""


class Holder(Record):
    """Hold what RUN/lock says of the process that holds it; earlier revisions say less."""

    host: Word
    pid: Count
    process_start: float | None = None
    """Seconds from the machine's start to that of the process."""
    boot: Word | None = None
    pid_namespace: int | None = None
    device: int | None = None
    """Number of the file system that the lock lies on."""
    job: Word | None = None
    since: Word = "an unknown time"


class Verdict(Record):
    """Hold the end.json of a start, which and-launch writes."""

    state: Word
    why: Text
    when: Seconds


class Figures(Record):
    """Hold the figures of one way to evaluate a checkpoint."""

    says: Word
    top1: Share
    top5: Share | None
    interval: Annotated[list[Share], Field(min_length=2, max_length=2)]
    images: Count
    unreadable: Count
    per_class: dict[Text, Share | None] = Field(default_factory=dict)


class Evaluation(Record):
    """Hold a file that `and-dist evaluate` writes."""

    checkpoint: Word
    of: dict[Word, Figures]
    protocol: dict[Word, Plain | dict[Word, Plain]]

    @pydantic.model_validator(mode="after")
    def fill_in_crops(self) -> Evaluation:
        """Name the crops of classifiers that an earlier revision trained, which had one kind."""
        linear = self.protocol.get("linear")
        if isinstance(linear, dict):
            linear.setdefault("crops", "as_training")
        return self


class RoundSummary(Record):
    """Hold the accuracies of a round in summary.json."""

    round: Count
    knn_bank: Share | None
    knn: Share | None


class Summary(Record):
    """Hold the part of summary.json that is read."""

    rounds: list[RoundSummary]
    seconds: Seconds = 0.0


EVENTS: Mapping[str, type[Event]] = {
    "step": Step,
    "epoch": Epoch,
    "round": Round,
    "baselines": Baselines,
    "discovery": Discovery,
    "checkpoint": Checkpoint,
    "rolled_back": LostBatch,
}


def check_event(value: Any) -> dict[str, Any]:
    """Return a line of metrics.jsonl; raise ValueError where a key has another kind of value."""
    name = value.get("event") if isinstance(value, dict) else None
    return check(EVENTS.get(name, Event) if isinstance(name, str) else Event, value)


def check(model: type[Record], value: Any) -> dict[str, Any]:
    """Return a record with the values of keys that it may lack.

    Raise ValueError with an error message where a key has another kind of value.
    """
    try:
        return model.model_validate(value).model_dump()
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(as_text(f"{where}: {first['msg'].lower()}")) from None


def parse(text: str | bytes) -> Any:
    """Return what JSON says; raise ValueError for anything else."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _containers_in(outer)]
        if not level:
            return value
    raise ValueError(TOO_DEEP)


def _containers_in(value: Any) -> list[Any]:
    """Return the lists and dictionaries that lie directly in a value."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [inner for inner in inside if isinstance(inner, (dict, list))]


def read_record(path: Path, model: type[Record]) -> dict[str, Any]:
    """Return the record in a JSON file; raise ValueError or OSError where there is none."""
    try:
        return check(model, read_sealed(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_sealed(path: Path) -> Any:
    """Return what a JSON file holds, without its seal; raise ValueError for a damaged one."""
    return unseal(parse(read_plain(path)), path.name)


def read_if_sound(path: Path, model: type[Record]) -> dict[str, Any] | None:
    """Return the record in a JSON file; say it and return None if the file is damaged."""
    try:
        return read_record(path, model)
    except (OSError, ValueError) as error:
        say_left_out(path, error)
        return None


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """Return what `and-dist evaluate` wrote; say it and return None if the file is damaged."""
    found = read_if_sound(path, Evaluation)
    if found is not None and found["checkpoint"] != path.parent.name:
        say_damage(f"{path} is left out: it is of checkpoint {found['checkpoint']}")
        return None
    return found


def write_record(path: Path, record: Mapping[str, Any], is_ours: IsOurs) -> None:
    """Write a record with its seal."""
    write_file(path, json.dumps(seal(record, path.name), indent=1) + "\n", is_ours)


def say_left_out(path: Path, error: Exception) -> None:
    """Say, once, that a file is damaged and left out."""
    why = (error.strerror if isinstance(error, OSError) else None) or str(error)
    say_damage(f"{path} is damaged and left out: {why.removeprefix(f'{path}: ')}")


@cache
def say_damage(text: str) -> None:
    """Say that a run folder is damaged: rank 0 alone does, and a process says nothing twice."""
    if is_rank_zero():
        log.warning("%s", text)
