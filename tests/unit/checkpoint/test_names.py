"""Names of checkpoints, and the folders that have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from and_dist.checkpoint.names import (
    checkpoint_name,
    list_checkpoints,
    name_in,
    parse_name,
    probe_name,
)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("r00-e0000", (0, 0, 0)),
        ("r01-e0003", (1, 3, 0)),
        ("r01-e0003-s000120", (1, 3, 120)),
        ("r123-e12345-s1234567", (123, 12345, 1234567)),
    ],
)
def test_a_name_tells_how_far_training_was(name: str, place: tuple[int, int, int]) -> None:
    assert checkpoint_name(*place) == name
    assert parse_name(name) == place


@pytest.mark.parametrize("name", ["r1-e0003", "r01-e003", "r01-e0003-s12", "s00000012", "latest"])
def test_other_names_tell_nothing(name: str) -> None:
    assert parse_name(name) is None


def test_states_of_all_revisions_have_a_name() -> None:
    assert probe_name(12) == "s00000012"
    assert name_in({"name": "one", "steps_done": 12}) == "one"
    assert name_in({"steps_done": 12}) == "s00000012"
    assert name_in({"progress": {"round_index": 1, "epochs": 3, "step": 7}}) == "r01-e0003-s000007"
    assert name_in({"progress": "half"}) is None


def test_where_there_is_no_folder_there_are_no_checkpoints(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "none") == []
    (tmp_path / "r00-e0001").mkdir()
    (tmp_path / ".r00-e0001.damaged").mkdir()
    assert list_checkpoints(tmp_path) == []


@pytest.mark.parametrize(
    ("latest", "names"),
    [
        (None, ["r00-e0002", "r00-e0001"]),
        ("r00-e0002", ["r00-e0002", "r00-e0001"]),
        ("r00-e0001", ["r00-e0001", "r00-e0002"]),  # after a rollback
        ("r00-e0003", ["r00-e0003", "r00-e0002", "r00-e0001"]),  # its loss is reported
        ("notes", ["r00-e0002", "r00-e0001"]),  # a folder of a user's
        ("../other", ["r00-e0002", "r00-e0001"]),
    ],
)
def test_the_latest_comes_first_and_then_from_new_to_old(
    tmp_path: Path, latest: str | None, names: list[str]
) -> None:
    for name in ("r00-e0001", "r00-e0002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shard-00001-model-00001-of-00001.safetensors").touch()
    (tmp_path / "notes").mkdir()
    (tmp_path / "r00-e0009").symlink_to(tmp_path / "r00-e0001")
    if latest:
        (tmp_path / "latest").write_text(latest + "\n")
    assert list_checkpoints(tmp_path) == names
