"""Write copies of metrics.jsonl for other programs: TensorBoard, Weights & Biases. No torch.

Each is written again from metrics.jsonl at every start, so that it repeats nothing and lacks
nothing. An error in one is reported once and ends that copy, not the run.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from and_dist.config.schema import Config
from and_dist.runs.folder import read_starts
from and_dist.utils.folder_names import Named
from and_dist.utils.owned_files import (
    NotOursError,
    never,
    open_to_append,
    remove_file,
    starts_with,
)
from and_dist.utils.owned_folders import remove_tree

Record = dict[str, Any]
GROUPS = {"step": "train", "epoch": "epoch", "round": "round", "discovery": "discovery"}
"""Events that have curves, and what the names of the curves begin with."""
is_events = starts_with(r"(?s).{0,64}brain\.Event:2")
WRITTEN_BY_WANDB = Named(
    r"run-\w+\.wandb(\.synced)?|logs/debug[\w-]*\.log|"
    r"files/(config\.yaml|output\.log|requirements\.txt|wandb-(metadata|summary)\.json)"
)
BY_ROUND = ("round", "discovery")
NO_CURVES = {"event", "time", "round", "epoch", "step"}


class Tracker(Protocol):
    """Writes a copy of metrics.jsonl for another program."""

    def write(self, record: Record) -> None:
        """Write the figures of a record."""

    def flush(self) -> None:
        """Put what was written on the disk."""

    def close(self) -> None:
        """End the copy."""


def step_of(record: Record, last: int) -> int:
    """Return the step over all rounds; events without one belong to the last step before."""
    return int(record["step"]) if record["event"] == "step" else last


def curves_of(record: Record) -> dict[str, float]:
    """Return the figures of an event by curve, such as `train/loss`, without nested ones."""
    group = GROUPS.get(record["event"])
    return {
        f"{group}/{key}": float(value)
        for key, value in record.items()
        if group and key not in NO_CURVES and isinstance(value, (int, float))
    }


def entropy_buckets(record: Record) -> list[tuple[float, float, int]]:
    """Return (from, to, rows) of the buckets of a discovery's histogram."""
    entropy = record["entropy"]
    low, counts = entropy["low"], entropy["rows"]
    width = (entropy["high"] - low) / len(counts)
    return [(low + at * width, low + (at + 1) * width, count) for at, count in enumerate(counts)]


def check_trackers(config: Config) -> None:
    """Raise ValueError for a copy that cannot be made here."""
    if config.run.wandb != "off" and find_spec("wandb") is None:
        raise ValueError(
            f"run.wandb={config.run.wandb} needs wandb: pip install -e '.[wandb]'; or run.wandb=off"
        )


class Trackers:
    """Writes all copies that a config asks for; none of them can end a run."""

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        """Prepare the copies; open none yet."""
        self._say = say
        self._makers: dict[str, Callable[[], Tracker]] = {}
        if config.run.tensorboard:
            self._makers["TensorBoard"] = lambda: TensorBoard(config.folder / "tensorboard")
        if config.run.wandb != "off":
            self._makers["Weights & Biases"] = lambda: WeightsAndBiases(config)
        self._open: dict[str, Tracker] = {}

    def begin(self, records: Iterable[Record]) -> None:
        """Begin all copies anew, with the records so far."""
        self.close()
        for name, make in self._makers.items():
            with self._without(name):
                self._open[name] = make()
        for record in records:
            self.write(record)

    def write(self, record: Record) -> None:
        """Write a record to all copies."""
        for name, tracker in list(self._open.items()):
            with self._without(name):
                tracker.write(record)

    def flush(self) -> None:
        """Put all copies on the disk."""
        for name, tracker in list(self._open.items()):
            with self._without(name):
                tracker.flush()

    def close(self) -> None:
        """Close all copies."""
        for name, tracker in list(self._open.items()):
            with self._without(name):
                tracker.close()
        self._open.clear()

    @contextmanager
    def _without(self, name: str) -> Iterator[None]:
        """Enclose work on one copy: an error drops it until the next start."""
        try:
            yield
        except Exception as error:  # a broken copy must not end the run
            self._open.pop(name, None)
            self._say(f"no more {name} until the next start: {type(error).__name__}: {error}")


class TensorBoard:
    """Writes RUN/tensorboard: curves over steps, those of rounds and discoveries over rounds.

    The events are written by hand, not by torch's SummaryWriter: on a full disk the thread of
    tensorboard 2.21's writer prints a traceback, and here one line says that the copy has ended.
    """

    def __init__(self, folder: Path) -> None:
        """Begin a new file in place of the earlier ones."""
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._protos = event_pb2, summary_pb2
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("events.out.tfevents.*.and-dist"):
            remove_file(path, is_events)
        place = folder / f"events.out.tfevents.{time.time():.6f}.and-dist"
        self._file = open_to_append(place, never)
        self._records = RecordWriter(self._file)
        self._step = 0
        self._write(time.time(), 0, file_version="brain.Event:2")
        # A TensorBoard that is open forgets what it has read of an earlier file.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(time.time(), 0, session_log=start)
        self._write(time.time(), 0, summary=_layout())

    def write(self, record: Record) -> None:
        """Add the figures of a record to their curves."""
        self._step = step_of(record, self._step)
        is_by_round = record["event"] in BY_ROUND
        step = record["round"] if is_by_round else self._step
        summary = self._protos[1].Summary()
        for tag, figure in curves_of(record).items():
            summary.value.add(tag=tag, simple_value=figure)
        if record["event"] == "discovery":
            self._add_histogram(summary, record)
        if summary.value:
            self._write(record["time"], step, summary=summary)

    def flush(self) -> None:
        """Put the curves on the disk."""
        self._records.flush()

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _add_histogram(self, summary: Any, record: Record) -> None:
        """Add the histogram of a discovery's entropies; sums take the middle of each bucket."""
        buckets = entropy_buckets(record)
        middles = [(start + stop) / 2 for start, stop, _ in buckets]
        counts = [float(count) for _, _, count in buckets]
        histogram = self._protos[1].HistogramProto(
            min=buckets[0][0],
            max=buckets[-1][1],
            num=sum(counts),
            sum=sum(m * c for m, c in zip(middles, counts, strict=True)),
            sum_squares=sum(m * m * c for m, c in zip(middles, counts, strict=True)),
            bucket_limit=[stop for _, stop, _ in buckets],
            bucket=counts,
        )
        summary.value.add(tag="discovery/entropy", histo=histogram)

    def _write(self, when: float, step: int, **content: Any) -> None:
        """Write one event."""
        event = self._protos[0].Event(wall_time=when, step=step, **content)
        self._records.write(event.SerializeToString())


def _layout() -> Any:
    """Return TensorBoard's custom charts: figures 5 and 6 of the paper."""
    from tensorboard.compat.proto import summary_pb2, tensor_pb2, types_pb2
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    def chart(title: str, *tags: str) -> Any:
        lines = layout_pb2.MultilineChartContent(tag=[f"^{tag}$" for tag in tags])
        return layout_pb2.Chart(title=title, multiline=lines)

    charts = [
        chart(
            "consistent and inconsistent pairs by round (figure 6)",
            "discovery/consistent",
            "discovery/inconsistent",
        ),
        chart("accuracy by round (figure 5)", "round/knn", "round/knn_bank"),
    ]
    layout = layout_pb2.Layout(category=[layout_pb2.Category(title="by round", chart=charts)])
    packed = tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING, string_val=[layout.SerializeToString()]
    )
    value = summary_pb2.Summary.Value(
        tag=metadata.CONFIG_SUMMARY_TAG, tensor=packed, metadata=metadata.create_summary_metadata()
    )
    return summary_pb2.Summary(value=[value])


def check_links(folder: Path) -> None:
    """Raise NotOursError where wandb would replace something other than its own links."""
    for name in ("latest-run", "debug.log", "debug-internal.log", "debug-core.log"):
        place = folder / name
        is_link = place.is_symlink() and re.match(r"(offline-)?run-", os.readlink(place))
        if os.path.lexists(place) and not is_link:
            raise NotOursError(f"{place} was not written by wandb: move it away")


def _id_of(config: Config) -> str:
    """Return what tells a run from another of the same name."""
    first_start = read_starts(config.folder)[0]["started"]
    text = f"{config.folder.resolve()} {first_start}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class WeightsAndBiases:
    """Writes everything to one offline run in RUN/wandb, or to the run's own online."""

    def __init__(self, config: Config) -> None:
        """Open the run."""
        import wandb

        assert config.run.wandb != "off"
        check_links(config.folder / "wandb")
        if config.run.wandb == "offline":  # all of it is written again
            for folder in (config.folder / "wandb").glob(f"offline-run-*-{_id_of(config)}"):
                remove_tree(folder, WRITTEN_BY_WANDB)
        self._run = wandb.init(
            project="and-dist",
            name=config.name,
            id=_id_of(config),
            resume="allow",
            mode=config.run.wandb,
            dir=config.folder,
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off"),
        )
        for group in BY_ROUND:
            self._run.define_metric(f"{group}/*", step_metric=f"{group}/index")
        self._sent = self._run.step
        self._step = 0

    def write(self, record: Record) -> None:
        """Log the figures of a record, unless they were logged before."""
        self._step = step_of(record, self._step)
        curves = curves_of(record)
        if record["event"] in BY_ROUND:  # a round ends at the step where the next begins
            curves[f"{record['event']}/index"] = record["round"]
        if curves and self._step >= self._sent:
            self._run.log(curves, step=self._step)

    def flush(self) -> None:
        """Do nothing: wandb writes by itself."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
