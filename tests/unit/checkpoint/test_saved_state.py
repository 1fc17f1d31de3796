"""States of earlier revisions pass; what names another file or has another kind is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from and_dist.checkpoint.saved_state import check_state

FIXTURES = Path(__file__).parents[2] / "fixtures"
STATES = sorted(FIXTURES.rglob("state.json"))
NAME = "shard-00001-model-00001-of-00001.safetensors"


def training() -> dict[str, Any]:
    state = FIXTURES / "and/checkpoints/r01-e0001-s000002/state.json"
    return dict(json.loads(state.read_text()))


@pytest.mark.parametrize("file", STATES, ids=lambda path: str(path.relative_to(FIXTURES)))
def test_states_of_earlier_revisions_pass_as_they_are(file: Path) -> None:
    state = json.loads(file.read_text())
    found = check_state(copy.deepcopy(state))
    assert {key: found[key] for key in state} == state


@pytest.mark.parametrize(
    "name",
    [
        "/dev/zero",
        "../shard-00001-model-00001-of-00001.safetensors",
        f"{NAME}/x",
        f"{NAME}\n",
        "state.json",
        "shard-a-model-1-of-1.safetensors",
        "",
    ],
)
def test_only_files_of_a_checkpoint_are_named(name: str) -> None:
    state = training()
    state["files"][name] = state["files"][NAME]
    with pytest.raises(ValueError, match="files"):
        check_state(state)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("files", NAME, "bytes"), -1),
        (("files", NAME, "bytes"), "1"),
        (("files", NAME, "sha256"), "0" * 63),
        (("files", NAME, "sha256"), "g" * 64),
        (("images", "rows"), None),
        (("images", "rows"), 99),
        (("images", "content_hash"), 3),
        (("progress", "round_index"), -1),
        (("progress", "epochs"), "1"),
        (("progress", "step"), 1.5),
        (("progress", "seconds"), float("nan")),
        (("num_anchors",), 201),
        (("num_anchors",), None),
        (("losses",), []),
        (("skipped",), [[1]]),
        (("skipped",), [[1, 2, 3]]),
        (("config",), []),
        (("bad_images",), {"x": "gone"}),
        (("bad_images",), {"1": 3}),
        (("metrics_bytes",), -1),
    ],
)
def test_another_kind_of_value_is_refused(path: tuple[str, ...], value: Any) -> None:
    state = training()
    parent = state
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    with pytest.raises(ValueError, match=f"{path[0]}|more anchors than images"):
        check_state(state)


@pytest.mark.parametrize("key", ["files", "images", "num_anchors", "losses", "skipped", "config"])
def test_a_key_that_is_read_may_not_be_missing(key: str) -> None:
    state = training()
    del state[key]
    with pytest.raises(ValueError, match=f"{key}: field required"):
        check_state(state)


def test_anchors_may_be_all_images() -> None:
    assert check_state({**training(), "num_anchors": 200})["num_anchors"] == 200
