"""TensorBoard's and Weights & Biases' copies of metrics.jsonl, read by their own readers."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar import layout_pb2
from wandb.proto import wandb_internal_pb2

from and_dist.runs.metrics_file import stream
from tests.conftest import Cli
from tests.end_to_end.processes import DEBUG, train, train_interrupted
from tests.ranks.runs import assert_equal_to_the_bit

pytestmark = pytest.mark.whole_run

BY_ROUND = ("round/", "discovery/")
BLOCK, FULL, LAST = 1 << 15, 1, 4
Points = dict[str, list[tuple[int, float]]]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_interrupted(tmp_path_factory.mktemp("runs"), "run.wandb=offline")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without trackers."""
    root = tmp_path_factory.mktemp("bare")
    train(f"run.root={root}", "run.tensorboard=false")
    return root / "debug"


def expected_points(run: Path) -> Points:
    """Every plain figure of metrics.jsonl, by its name and place."""
    points: Points = {}
    last = 0
    for record in stream(run / "metrics.jsonl"):
        last = record.get("step", last)
        group = {"step": "train"}.get(record["event"], record["event"])
        if group not in ("train", "epoch", "round", "discovery", "goodput"):
            continue
        place = record["round"] if group in ("round", "discovery") else last
        for key, value in record.items():
            is_figure = isinstance(value, (int, float)) and not isinstance(value, bool)
            if is_figure and key not in ("time", "round", "epoch", "step"):
                points.setdefault(f"{group}/{key}", []).append((place, pytest.approx(value)))
    return points


def tensorboard_events(run: Path) -> list[Any]:
    (file,) = (run / "tensorboard").glob("*tfevents*")
    return list(EventFileLoader(str(file)).Load())


def test_tensorboard_has_every_point_once_after_restarts(resumed: Path) -> None:
    points: Points = {}
    for event in tensorboard_events(resumed):
        for value in event.summary.value:
            figures = list(value.tensor.float_val)
            if value.metadata.plugin_data.plugin_name == "scalars":
                points.setdefault(value.tag, []).append((event.step, figures[0]))
    expected = expected_points(resumed)
    assert points.keys() == expected.keys()
    assert {"train/loss", "train/data_wait", "round/knn", "discovery/consistent"} <= points.keys()
    assert points == expected


def test_tensorboard_is_told_to_forget_what_it_read_before(resumed: Path) -> None:
    first, second, *_ = tensorboard_events(resumed)
    assert first.file_version == "brain.Event:2"
    assert (second.session_log.status, second.step) == (second.session_log.START, 0)


def test_tensorboard_has_figures_5_and_6_and_histograms(resumed: Path) -> None:
    values = [v for event in tensorboard_events(resumed) for v in event.summary.value]
    (layout_value,) = [v for v in values if v.tag == "custom_scalars__config__"]
    layout = layout_pb2.Layout.FromString(layout_value.tensor.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert charts == {
        "consistent and inconsistent pairs by round (figure 6)": [
            "^discovery/consistent$",
            "^discovery/inconsistent$",
        ],
        "accuracy by round (figure 5)": ["^round/knn$", "^round/knn_bank$"],
    }
    histograms = [v for v in values if v.tag == "discovery/entropy"]
    rounds = [r for r in stream(resumed / "metrics.jsonl") if r["event"] == "discovery"]
    assert len(histograms) == len(rounds) == 2


def records_of(content: bytes) -> Iterator[bytes]:
    """Of a .wandb file: LevelDB's log format, blocks of 32 KiB after a header of 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (FULL, LAST):
            yield whole
            whole = b""


def test_weights_and_biases_has_every_step_once_after_restarts(resumed: Path) -> None:
    (file,) = (resumed / "wandb").glob("offline-run-*/*.wandb")
    logged: dict[str, dict[int, float]] = {}
    for data in records_of(file.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        entries = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        for key, value in entries.items():
            step = entries["_step"]
            assert step not in logged.get(key, {}), (key, step)
            logged.setdefault(key, {})[step] = value
    for name, points in expected_points(resumed).items():
        if name.startswith(BY_ROUND):
            assert list(logged[name].values()) == [value for _, value in points]
        else:
            assert logged[name] == dict(points)


def test_both_show_the_neighbourhoods_of_every_round_after_restarts(resumed: Path) -> None:
    files = sorted((resumed / "neighbourhoods").iterdir())
    assert [file.name for file in files] == ["round-01.png", "round-02.png"]
    events = EventAccumulator(str(resumed / "tensorboard"), size_guidance={"images": 0}).Reload()
    images = events.Images("discovery/neighbourhoods")
    assert [image.step for image in images] == [1, 2]
    pictures = [file.read_bytes() for file in files]
    assert [image.encoded_image_string for image in images] == pictures
    (offline,) = (resumed / "wandb").glob("offline-run-*")
    media = sorted((offline / "files/media/images/discovery").iterdir(), key=step_of_image)
    assert [file.read_bytes() for file in media] == pictures


def step_of_image(file: Path) -> int:
    return int(file.name.split("_")[1])


def test_pictures_change_nothing_that_is_trained(resumed: Path, bare: Path) -> None:
    assert_equal_to_the_bit(resumed, bare)


def test_a_picture_that_cannot_be_drawn_is_said_once_and_ends_no_run(
    resumed: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(resumed, tmp_path / "debug", symlinks=True))
    (folder / "checkpoints" / "latest").write_text("r00-e0003\n")
    mine = {folder / "neighbourhoods" / f"round-0{number}.png": number for number in (1, 2)}
    for path, number in mine.items():
        path.write_text(f"mine {number}")
    (folder / "summary.json").unlink()
    output = train(f"run.root={tmp_path}")
    said = "no picture of the neighbourhoods of round"
    assert output.count(said) == 1
    assert f"{said} 1: NotOursError: " in output
    assert (folder / "summary.json").exists()
    assert all(path.read_text() == f"mine {number}" for path, number in mine.items())
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert events.Tags()["images"] == []


def test_a_copy_that_cannot_be_written_ends_no_run(resumed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(resumed, tmp_path / "debug", symlinks=True))
    (folder / "summary.json").unlink()
    (folder / "checkpoints" / "latest").write_text("r01-e0003\n")
    for file in (folder / "tensorboard").iterdir():
        file.unlink()
    (folder / "tensorboard").rmdir()
    (folder / "tensorboard").write_text("in the way")
    output = train(f"run.root={tmp_path}")
    assert "no more TensorBoard until the next start: FileExistsError" in output
    assert (folder / "summary.json").exists()


def test_none_is_written_where_none_is_wanted(bare: Path) -> None:
    for name in ("tensorboard", "wandb", "neighbourhoods"):
        assert not (bare / name).exists()


def test_another_word_for_wandb_is_refused(tmp_path: Path, cli: Cli) -> None:
    status, _, said = cli(*DEBUG, f"run.root={tmp_path}", "run.wandb=yes")
    assert status == 2
    assert "run.wandb" in said
    assert "offline" in said
