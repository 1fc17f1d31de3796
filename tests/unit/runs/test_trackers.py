"""What TensorBoard is told beside the curves, as its own readers find it."""

from __future__ import annotations

import calendar
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata

from and_dist.config.load import load_config
from and_dist.config.schema import Config
from and_dist.config.secret_values import is_secret
from and_dist.config.validation import flatten
from and_dist.runs.folder import open_run_folder
from and_dist.runs.records import TIME
from and_dist.runs.round_pictures import SOFTWARE, picture_path
from and_dist.runs.shown_config import keys_that_train, shown_config
from and_dist.runs.trackers import Trackers

ENTROPY = {"low": 0.0, "high": 4.0, "mean": 2.0, "rows": [1, 3], "anchors": [1, 0]}
STARTED = "2026-11-28T10:00:00+0000"


def discovery(round_index: int) -> dict[str, Any]:
    figures = {"anchors": 1, "consistent": None, "inconsistent": None, "entropy": ENTROPY}
    return {"event": "discovery", "time": 10.0 + round_index, "round": round_index, **figures}


def round_end(round_index: int) -> dict[str, Any]:
    figures = {"anchors": 1, "consistency": None, "knn_bank": 0.25, "knn": 0.5}
    return {"event": "round", "time": 20.0 + round_index, "round": round_index, **figures}


def draw(run: Path, round_index: int) -> bytes:
    path = picture_path(run, round_index)
    path.parent.mkdir(exist_ok=True)
    about = PngInfo()
    about.add_text("Software", SOFTWARE)
    Image.new("RGB", (40 + round_index, 30), "red").save(path, pnginfo=about)
    return path.read_bytes()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    overrides = (f"run.root={tmp_path}", "encoder.weights=https://me:hunter2@host/w.pth")
    config = load_config(["configs/debug.yaml"], overrides)
    open_run_folder(config, 1, "cpu")
    starts = config.folder / "environment.json"
    about = {"started": STARTED, "world_size": 1, "device": "cpu", "host": "n1"}
    starts.write_text(json.dumps([about]))
    return config


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def trackers(config: Config, said: list[str]) -> Iterator[Trackers]:
    found = Trackers(config, said.append)
    yield found
    found.close()
    assert said == []


def read(config: Config) -> EventAccumulator:
    events = EventAccumulator(str(config.folder / "tensorboard"), size_guidance={"images": 0})
    return events.Reload()


def hparams_content(events: EventAccumulator, tag: str) -> bytes:
    content = events.SummaryMetadata(tag).plugin_data.content
    assert isinstance(content, bytes)
    return content


def test_the_config_is_a_text_without_secrets(config: Config, trackers: Trackers) -> None:
    trackers.begin([])
    trackers.flush()
    (text,) = read(config).Tensors("config")
    (content,) = text.tensor_proto.string_val
    fenced = content.decode().removeprefix("```yaml\n").removesuffix("```\n")
    shown = yaml.safe_load(fenced)
    assert shown == shown_config(config)
    weights = shown["encoder"].pop("weights")
    whole = config.model_dump(mode="json")
    whole["encoder"].pop("weights")
    assert shown == whole
    assert weights == "https://***@host/w.pth"
    for path in (config.folder / "tensorboard").iterdir():
        assert b"hunter2" not in path.read_bytes()


def test_no_key_of_a_config_is_taken_for_a_secret() -> None:
    assert not [key for key in flatten(Config().model_dump(mode="json")) if is_secret(key)]


def test_hparams_has_what_is_trained_and_three_metrics(config: Config, trackers: Trackers) -> None:
    trackers.begin([])
    trackers.flush()
    events = read(config)
    content = hparams_content(events, metadata.SESSION_START_INFO_TAG)
    start = metadata.parse_session_start_info_plugin_data(content)
    assert start.start_time_secs == calendar.timegm(time.strptime(STARTED, TIME))
    values = {key: getattr(v, v.WhichOneof("kind")) for key, v in start.hparams.items()}
    assert values == keys_that_train(config)
    assert values["optim.lr"] == config.optim.lr
    assert values["data.crop_area"] == "0.2, 1.0"
    assert values["data.limit_test"] == config.data.limit_test
    assert values["encoder.weights"] == "https://***@host/w.pth"
    assert not [key for key in values if key.startswith(("run.", "name", "deepcluster.", "paper"))]
    content = hparams_content(events, metadata.EXPERIMENT_TAG)
    experiment = metadata.parse_experiment_plugin_data(content)
    assert {info.name for info in experiment.hparam_infos} == values.keys()
    metrics = [info.name.tag for info in experiment.metric_infos]
    assert metrics == ["round/knn", "round/knn_bank", "epoch/loss"]


def test_a_method_has_its_own_keys() -> None:
    config = load_config(["configs/debug.yaml"], ["method=deepcluster"])
    assert keys_that_train(config)["deepcluster.clusters"] == config.deepcluster.clusters


@pytest.mark.parametrize(
    ("last", "status"),
    [
        (round_end(1), None),
        (round_end(2), api_pb2.STATUS_SUCCESS),
        (
            {"event": "non_finite", "time": 22.0, "round": 1, "epoch": 0, "step": 1, "rows": []},
            api_pb2.STATUS_FAILURE,
        ),
    ],
)
def test_hparams_has_how_a_run_ended(
    last: dict[str, Any], status: int | None, config: Config, trackers: Trackers
) -> None:
    assert config.last_round == 2
    trackers.begin([round_end(0)])
    trackers.write(last)
    trackers.flush()
    events = read(config)
    tags = events.Tags()["tensors"]
    assert (metadata.SESSION_END_INFO_TAG in tags) == (status is not None)
    if status is not None:
        content = hparams_content(events, metadata.SESSION_END_INFO_TAG)
        end = metadata.parse_session_end_info_plugin_data(content)
        assert (end.status, end.end_time_secs) == (status, 22.0)


def test_pictures_of_earlier_rounds_are_there_again_after_a_restart(
    config: Config, trackers: Trackers
) -> None:
    pictures = [draw(config.folder, round_index) for round_index in (1, 2)]
    for _ in range(2):
        trackers.begin([discovery(1), discovery(2)])
        trackers.flush()
        images = read(config).Images("discovery/neighbourhoods")
        assert [image.step for image in images] == [1, 2]
        assert [image.encoded_image_string for image in images] == pictures
        assert [(image.width, image.height) for image in images] == [(41, 30), (42, 30)]


def test_pictures_of_rounds_that_are_yet_to_come_are_removed(
    config: Config, trackers: Trackers
) -> None:
    """As after a roll-back to round 1."""
    for round_index in (1, 2):
        draw(config.folder, round_index)
    trackers.begin([discovery(1)])
    trackers.flush()
    assert [image.step for image in read(config).Images("discovery/neighbourhoods")] == [1]
    assert picture_path(config.folder, 1).exists()
    assert not picture_path(config.folder, 2).exists()


def test_pictures_are_wanted_where_a_tracker_is(tmp_path: Path) -> None:
    wanted = {
        overrides: Trackers(
            load_config(["configs/debug.yaml"], [f"run.root={tmp_path}", *overrides]), print
        ).are_wanted
        for overrides in [(), ("run.tensorboard=false",)]
    }
    assert wanted == {(): True, ("run.tensorboard=false",): False}
