from __future__ import annotations

from pathlib import Path

import pytest

from and_dist.config.comparison import differing_keys
from and_dist.config.load import load_config
from launcher.jobs.cluster_profile import Profile
from launcher.jobs.request import Size
from launcher.sweep import load_members, load_sweep, name_of

SIZE = Size(workers=1, time="1h")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"name: s\nconfig: [configs/debug.yaml]\n{text}\n")
    return path


def test_every_run_is_tried_at_every_point_of_the_grid(tmp_path: Path) -> None:
    sweep = load_sweep(
        write(
            tmp_path,
            f"overrides: [run.root={tmp_path}]\ngrid: {{seed: [0, 1], optim.lr: [0.1, 0.2]}}\n"
            "runs: [{}, {optim.milestones: [1, 2], curriculum.epochs: 4}]",
        )
    )
    members = load_members(sweep, Profile(), SIZE)
    assert [run.config.name for run in members] == [
        f"seed-{seed}_lr-{lr}{more}"
        for seed in (0, 1)
        for lr in (0.1, 0.2)
        for more in ("", "_milestones-1-2_epochs-4")
    ]
    assert {run.config.folder.parent for run in members} == {tmp_path / "s"}
    last = members[-1].config
    assert (last.seed, last.optim.lr, last.optim.milestones) == (1, 0.2, (1, 2))
    assert members[-2].config.optim.milestones == members[0].config.optim.milestones


def test_names_hold_what_a_folder_may() -> None:
    member = {
        "bank.init": "features",
        "paper": ["figure 5/R = 2/CIFAR10"],
        "data.train": "/a b/c",
        "data.test": None,
        "seed": 0,
    }
    assert name_of(member) == "init-features_train-a-b-c_test-null_seed-0"


def test_settings_may_have_a_name(tmp_path: Path) -> None:
    runs = "grid: {seed: [0, 1]}\nruns: [{encoder.name: tiny}, {name: a wide one, optim.lr: 0.1}]"
    sweep = load_sweep(write(tmp_path, runs))
    members = load_members(sweep, Profile(), SIZE)
    names = [run.config.name for run in members]
    assert names == [
        "seed-0_name-tiny",
        "seed-0_a-wide-one",
        "seed-1_name-tiny",
        "seed-1_a-wide-one",
    ]
    assert [run.config.optim.lr for run in members] == [0.03, 0.1, 0.03, 0.1]
    assert sweep.members[1][0] == {"seed": 0, "name": "a wide one"}  # what the table shows


@pytest.mark.whole_run
@pytest.mark.thorough
def test_options_of_an_encoder_may_be_varied(tmp_path: Path) -> None:
    network = "encoder.name: timm/convnext_atto, data.image_size: 32"
    options = "encoder.options: {depths: [1, 1, 1, 1], dims: [8, 8, 8, 8], drop_path_rate: 0.1}"
    sweep = load_sweep(write(tmp_path, f"runs: [{{{network}, {options}}}]"))
    (only,) = load_members(sweep, Profile(), SIZE)
    assert only.config.encoder.options["dims"] == (8, 8, 8, 8)
    assert only.config.name.endswith("options-depths-1-1-1-1-dims-8-8-8-8-drop-path-rate-0.1")


SWEEPS = sorted(Path("configs/sweeps").glob("*.yaml"))
COUNTED = ("fashion-networks",)
"""Sweeps of networks whose costs other programs count."""


@pytest.mark.parametrize("file", [file for file in SWEEPS if file.stem not in COUNTED], ids=str)
def test_the_sweeps_that_come_along_are_right(file: Path) -> None:
    assert load_members(load_sweep(file), Profile(), SIZE)


@pytest.mark.whole_run
@pytest.mark.thorough
@pytest.mark.parametrize("name", COUNTED)
def test_the_sweeps_of_other_networks_are_right(name: str) -> None:
    assert load_members(load_sweep(Path(f"configs/sweeps/{name}.yaml")), Profile(), SIZE)


def test_the_ablations_are_the_papers_configs() -> None:
    files = {file: load_config([file]) for file in Path("configs/paper").glob("*.yaml")}
    by_place = {config.paper[0]: config for config in files.values()}
    members = load_members(load_sweep(Path("configs/sweeps/ablations.yaml")), Profile(), SIZE)
    assert len(members) == 3 * 10
    for run in members:
        own = by_place[run.config.paper[0]]
        assert run.config.paper == own.paper
        changed = differing_keys(run.config, own.model_dump(mode="json"))
        assert changed in ([], [f"seed: 0 -> {run.config.seed}"])


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
