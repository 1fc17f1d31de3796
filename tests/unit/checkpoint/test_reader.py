"""Which checkpoint of a run is opened, and with which overrides."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from and_dist.checkpoint.reader import open_checkpoint
from and_dist.checkpoint.storage import save_checkpoint
from and_dist.distributed.world import World
from and_dist.report.neighbourhood_examples import checkpoints_of
from and_dist.runs.folder import config_of
from benchmarks.common.rank_pool import RankPool
from tests.unit.checkpoint.runs import ROWS, save_here, write_run


@pytest.fixture
def run(ranks: RankPool, tmp_path: Path) -> Path:
    config = write_run(tmp_path / "run")
    for name in ("r01-e0002", "r01-e0003"):
        ranks.run(1, save_here, tmp_path / "run", config, name)
    return tmp_path / "run"


def test_the_newest_or_the_named_one_is_opened(run: Path) -> None:
    opened = open_checkpoint(run)
    assert opened.checkpoint == run / "checkpoints" / "r01-e0003"
    assert opened.evaluation == run / "evaluation" / "r01-e0003"
    assert opened.num_rows == ROWS
    assert len(opened.weights) == 16
    assert open_checkpoint(run, "r01-e0002").checkpoint.name == "r01-e0002"


@pytest.mark.parametrize(
    ("checkpoint", "sentence"),
    [
        ("r09-e0001", "there is no checkpoint"),
        ("../r01-e0002", r"is no name of a checkpoint of .* which has: r01-e0002, r01-e0003"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_refused(
    run: Path, checkpoint: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        open_checkpoint(run, checkpoint)


def test_a_file_that_is_lost_is_named(run: Path) -> None:
    newest = run / "checkpoints" / "r01-e0003"
    (lost,) = newest.glob("*.safetensors")
    lost.unlink()
    with pytest.raises(ValueError, match=rf"r01-e0003 is damaged: it lacks {lost.name}"):
        open_checkpoint(run)


def save_bare(world: World, folder: Path, name: str) -> None:
    save_checkpoint(folder, name, {"weight": torch.ones(2)}, {}, world)


def test_a_checkpoint_that_lacks_what_training_needs_is_refused(ranks: RankPool, run: Path) -> None:
    ranks.run(1, save_bare, run / "checkpoints", "r01-e0004")
    with pytest.raises(ValueError, match=r"cannot be read: state\.json: it has no progress"):
        open_checkpoint(run)


def test_a_bent_latest_is_named(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run / "checkpoints" / "latest").write_text("r01-d0003\n")
    with pytest.raises(ValueError, match="there is no checkpoint"):
        open_checkpoint(run)
    assert f"{run}/checkpoints/latest names r01-d0003, which is not there" in caplog.text
    (run / "checkpoints" / "latest").write_text("")
    assert open_checkpoint(run).checkpoint.name == "r01-e0003"
    assert f"{run}/checkpoints/latest names no checkpoint, and r01-e0003 is" in caplog.text


@pytest.mark.parametrize(
    ("lost", "kept"),
    [
        (["r01-e0002"], ["r01-e0003"]),
        (["r01-e0003"], ["r01-e0002"]),
        (["r01-e0002", "r01-e0003"], []),
    ],
)
def test_a_report_names_a_checkpoint_that_it_leaves_out(
    ranks: RankPool, run: Path, caplog: pytest.LogCaptureFixture, lost: list[str], kept: list[str]
) -> None:
    """Its state.json is that of linear classifiers."""
    ranks.run(1, save_bare, run / "evaluation", "s00000001")
    for name in lost:
        shutil.copy(run / "evaluation/s00000001/state.json", run / "checkpoints" / name)
    found = checkpoints_of(run, config_of(run), print)
    assert [opened.checkpoint.name for opened in found] == kept
    for name in lost:
        assert f"{name} is left out: its state.json is not the one" in caplog.text


def test_what_is_no_run_or_has_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run folder: it has no config\.yaml"):
        open_checkpoint(tmp_path)
    write_run(tmp_path / "run")
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        open_checkpoint(tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "may_change"),
    [
        ("evaluation.knn=7", ()),
        ("curriculum.neighbours=2", ("curriculum.neighbours",)),
        ("curriculum.neighbours=2", ("curriculum",)),
        ("data.test=elsewhere", ("data.test",)),
    ],
)
def test_some_keys_may_be_changed(run: Path, override: str, may_change: tuple[str, ...]) -> None:
    opened = open_checkpoint(run, None, [override], may_change)
    section, key = override.split("=")[0].split(".")
    assert str(getattr(getattr(opened.config, section), key)) == override.split("=")[1]


@pytest.mark.parametrize("may_change", [(), ("data",), ("curriculum.rounds",)])
def test_what_was_trained_may_not_be_changed(run: Path, may_change: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"was trained otherwise: curriculum\.neighbours: 1 -> 2$"):
        open_checkpoint(run, None, ["curriculum.neighbours=2"], may_change)


def test_a_checkpoint_of_another_run_is_refused(run: Path) -> None:
    """Its images may lie elsewhere, as on another machine."""
    written = yaml.safe_load((run / "config.yaml").read_text())
    written["data"]["train"] = "elsewhere"
    (run / "config.yaml").write_text(yaml.safe_dump(written))
    assert open_checkpoint(run).config.data.train == "elsewhere"
    written["bank"]["update_rate"] = 0.25
    (run / "config.yaml").write_text(yaml.safe_dump(written))
    with pytest.raises(ValueError, match=r"is of another run: bank\.update_rate: 0\.5 -> 0\.25$"):
        open_checkpoint(run)
