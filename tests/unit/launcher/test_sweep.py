from __future__ import annotations

from pathlib import Path

import pytest

from launcher.profile import Profile
from launcher.request import Size
from launcher.sweep import load_members, load_sweep, name_of

SIZE = Size(workers=1, time="1h")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"name: s\nconfig: [configs/debug.yaml]\n{text}\n")
    return path


def test_a_grid_is_all_combinations_and_runs_stand_beside_it(tmp_path: Path) -> None:
    sweep = load_sweep(
        write(
            tmp_path,
            f"overrides: [run.root={tmp_path}]\ngrid: {{seed: [0, 1], optim.lr: [0.1, 0.2]}}\n"
            "runs: [{curriculum.rounds: 1}, {optim.milestones: [1, 2], curriculum.epochs: 4}]",
        )
    )
    members = load_members(sweep, Profile(), SIZE)
    assert [run.config.name for run in members] == [
        "seed-0_lr-0.1", "seed-0_lr-0.2", "seed-1_lr-0.1", "seed-1_lr-0.2",
        "rounds-1", "milestones-1-2_epochs-4",
    ]  # fmt: skip
    assert {run.config.folder.parent for run in members} == {tmp_path / "s"}
    assert members[3].config.seed == 1
    assert members[3].config.optim.lr == 0.2
    assert members[5].config.optim.milestones == (1, 2)
    assert members[5].config.optim.lr == members[4].config.optim.lr


def test_names_hold_what_a_folder_may() -> None:
    member = {"bank.init": "features", "data.train": "/a b/c", "data.test": None, "seed": 0}
    assert name_of(member) == "init-features_train-a-b-c_test-null_seed-0"


@pytest.mark.parametrize("name", ["demo", "ablations"])
def test_the_sweeps_that_come_along_are_right(name: str) -> None:
    assert load_members(load_sweep(Path(f"configs/sweeps/{name}.yaml")), Profile(), SIZE)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "names no runs: give grid or runs"),
        ("grid: {seed: 1}", "grid.seed = 1 will not do"),
        ("gird: {seed: [1]}", "unknown key 'gird'; the top level takes: name, config"),
        ("grid: {seed: [1]}\nparallel: 0", "parallel = 0 will not do"),
    ],
)
def test_a_sweep_that_is_wrong_is_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ValueError) as refused:
        load_sweep(write(tmp_path, text))
    assert sentence in str(refused.value)


def test_one_run_that_will_not_do_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    sweep = load_sweep(
        write(tmp_path, f"overrides: [run.root={tmp_path}/r]\ngrid: {{optim.lr: [0.1, -1]}}")
    )
    with pytest.raises(ValueError, match=r"sweep s, run lr-1: optim.lr = -1 will not do"):
        load_members(sweep, Profile(), SIZE)
    assert not (tmp_path / "r").exists()


def test_two_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, "runs: [{seed: 1}, {seed: 1}]"))
    with pytest.raises(ValueError, match="two runs would be called seed-1"):
        load_members(sweep, Profile(), SIZE)
