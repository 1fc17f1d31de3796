from __future__ import annotations

import json
from pathlib import Path

import pytest

from and_dist.config.load import load_config
from and_dist.runs.folder import (
    REVISION_FILE,
    check_run_folder,
    open_run_folder,
    read_starts,
    revision,
)
from and_dist.utils.seals import seal


def test_a_start_in_another_environment_is_told(tmp_path: Path) -> None:
    config = load_config(["configs/debug.yaml"], [f"run.root={tmp_path}"])
    assert open_run_folder(config, 2, "cpu") == []
    assert open_run_folder(config, 2, "cpu") == []
    starts = config.folder / "environment.json"
    history = json.loads(starts.read_text())
    history[-1]["packages"]["torch"] = "1.0"
    history[-1]["packages"]["apex"] = "2.0"
    history[-1] = seal(history[-1], starts.name)
    starts.write_text(json.dumps(history))
    changed = open_run_folder(config, 4, "cuda")
    now = read_starts(config.folder)[-1]["packages"]["torch"]
    assert changed == [
        "apex: 2.0 -> None",
        "device: cpu -> cuda",
        f"torch: 1.0 -> {now}",
        "world_size: 2 -> 4",
    ]
    assert len(read_starts(config.folder)) == 3


def test_a_history_that_is_not_ours_is_refused_and_stays(tmp_path: Path) -> None:
    config = load_config(["configs/debug.yaml"], [f"run.root={tmp_path}"])
    open_run_folder(config, 1, "cpu")
    history = config.folder / "environment.json"
    history.write_text("{")
    with pytest.raises(ValueError, match=r"environment\.json exists and was not written by"):
        check_run_folder(config)
    with pytest.raises(ValueError, match=r"environment\.json exists and was not written by"):
        open_run_folder(config, 1, "cpu")
    assert history.read_text() == "{"


@pytest.mark.parametrize("name", ["neighbourhoods", "neighbourhoods/round-01.png"])
def test_a_link_in_the_place_of_pictures_is_refused(name: str, tmp_path: Path) -> None:
    config = load_config(["configs/debug.yaml"], [f"run.root={tmp_path}"])
    open_run_folder(config, 1, "cpu")
    (config.folder / name).parent.mkdir(exist_ok=True)
    (config.folder / name).symlink_to(tmp_path)
    with pytest.raises(ValueError, match=f"{name} is a link, and a run has .* there: move it away"):
        check_run_folder(config)


def test_notes_beside_the_pictures_are_no_matter(tmp_path: Path) -> None:
    config = load_config(["configs/debug.yaml"], [f"run.root={tmp_path}"])
    open_run_folder(config, 1, "cpu")
    (config.folder / "neighbourhoods").mkdir()
    (config.folder / "neighbourhoods" / "latest.png").symlink_to("round-01.png")
    check_run_folder(config)


def test_a_copy_of_the_code_knows_its_revision(tmp_path: Path) -> None:
    from and_dist.runs import folder

    (tmp_path / REVISION_FILE).write_text("abc-dirty\n")
    before, folder.__file__ = folder.__file__, str(tmp_path / "and_dist" / "runs" / "folder.py")
    try:
        assert revision() == "abc-dirty"
        (tmp_path / REVISION_FILE).write_text("\n")
        assert revision() is None
    finally:
        folder.__file__ = before
