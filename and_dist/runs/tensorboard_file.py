"""Write a run's records for TensorBoard: RUN/tensorboard. No torch.

Text has the config, HParams the keys of it that decide what is trained, Images the neighbourhoods
of each round. The events are written by hand, not by torch's SummaryWriter: on a full disk the
thread of tensorboard 2.21's writer prints a traceback, and here one line says that the copy has
ended.
"""

from __future__ import annotations

import struct
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from and_dist.config.schema import Config
from and_dist.runs.curves import BY_ROUND, PICTURES, Record, curves_of, entropy_buckets, step_of
from and_dist.runs.folder import read_starts
from and_dist.runs.records import TIME
from and_dist.runs.round_pictures import read_picture
from and_dist.runs.shown_config import as_yaml, keys_that_train
from and_dist.utils.owned_files import never, open_to_append, remove_file, starts_with

METRICS = {
    "round/knn": "kNN accuracy",
    "round/knn_bank": "kNN accuracy by the bank",
    "epoch/loss": "loss of the last epoch",
}
"""The curves whose last values HParams shows, and their names there."""
is_events = starts_with(r"(?s).{0,64}brain\.Event:2")


class TensorBoard:
    """Writes RUN/tensorboard: curves over steps, those of rounds and discoveries over rounds."""

    def __init__(self, config: Config) -> None:
        """Begin a new file in place of the earlier ones, with the config."""
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._protos = event_pb2, summary_pb2
        self._run, self._last_round = config.folder, config.last_round
        folder = config.folder / "tensorboard"
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
        for summary in (_layout(), _text("config", as_yaml(config)), *_hparams(config)):
            self._write(time.time(), 0, summary=summary)

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
            self._add_picture(summary, record["round"])
        if summary.value:
            self._write(record["time"], step, summary=summary)
        if status := self._end_of(record):
            self._write(record["time"], self._step, summary=_session_end(status, record["time"]))

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

    def _add_picture(self, summary: Any, round_index: int) -> None:
        """Add the picture of a round's neighbourhoods, if there is one."""
        content = read_picture(self._run, round_index)
        if content is None:
            return
        width, height = struct.unpack(">II", content[16:24])
        image = self._protos[1].Summary.Image(
            width=width, height=height, colorspace=3, encoded_image_string=content
        )
        summary.value.add(tag=PICTURES, image=image)

    def _end_of(self, record: Record) -> str:
        """Return how a record ends the run, as HParams names it; "" for most records."""
        if record["event"] == "round" and record["round"] == self._last_round:
            return "STATUS_SUCCESS"
        return "STATUS_FAILURE" if record["event"] == "non_finite" else ""

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


def _text(tag: str, markdown: str) -> Any:
    """Return a text, which TensorBoard shows as Markdown."""
    from tensorboard.compat.proto import summary_pb2, tensor_pb2, types_pb2
    from tensorboard.plugins.text import metadata

    packed = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[markdown.encode()])
    about = metadata.create_summary_metadata(display_name=tag, description="")
    return summary_pb2.Summary(
        value=[summary_pb2.Summary.Value(tag=tag, tensor=packed, metadata=about)]
    )


def _hparams(config: Config) -> tuple[Any, Any]:
    """Return what HParams shows: its columns, and this run's values in them.

    tensorboard's own functions for it need TensorFlow.
    """
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    values = keys_that_train(config)
    start = plugin_data_pb2.SessionStartInfo(start_time_secs=_first_start(config.folder))
    columns = []
    for key, value in values.items():
        column = api_pb2.HParamInfo(name=key)
        if isinstance(value, bool):
            column.type = api_pb2.DATA_TYPE_BOOL
            start.hparams[key].bool_value = value
        elif isinstance(value, (int, float)):
            column.type = api_pb2.DATA_TYPE_FLOAT64
            start.hparams[key].number_value = value
        else:
            column.type = api_pb2.DATA_TYPE_STRING
            start.hparams[key].string_value = value
        columns.append(column)
    metrics = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=name)
        for tag, name in METRICS.items()
    ]
    experiment = api_pb2.Experiment(hparam_infos=columns, metric_infos=metrics)
    return (
        _hparams_summary(metadata.EXPERIMENT_TAG, experiment=experiment),
        _hparams_summary(metadata.SESSION_START_INFO_TAG, session_start_info=start),
    )


def _session_end(status: str, when: float) -> Any:
    """Return how a run has ended, for HParams."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.Status.Value(status), end_time_secs=when)
    return _hparams_summary(metadata.SESSION_END_INFO_TAG, session_end_info=end)


def _hparams_summary(tag: str, **content: Any) -> Any:
    """Return a summary whose metadata hold something for HParams."""
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**content))
    value = summary_pb2.Summary.Value(tag=tag, tensor=metadata.NULL_TENSOR, metadata=about)
    return summary_pb2.Summary(value=[value])


def _first_start(run: Path) -> float:
    """Return when a run was first started, or now if that is not known."""
    try:
        return datetime.strptime(read_starts(run)[0]["started"], TIME).timestamp()
    except (IndexError, KeyError, TypeError, ValueError):
        return time.time()
