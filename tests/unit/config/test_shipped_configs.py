"""Every experiment of the paper: what its file says of itself, and that it trains."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from _pytest.mark import ParameterSet
from torch import Tensor

from and_dist.config.load import load_config
from and_dist.config.paper_figures import FIGURES
from and_dist.config.schema import Config
from and_dist.config.validation import flatten
from and_dist.data.datasets import load_train_and_test
from and_dist.data.loader import Batch
from and_dist.distributed.watchdog import Watchdog
from and_dist.distributed.world import open_world
from and_dist.runs.console import Display
from and_dist.runs.folder import check_run_folder, open_run_folder
from and_dist.training.trainer import Trainer

FILES = sorted(Path("configs/paper").glob("*.yaml"))
NAMES = [file.stem for file in FILES]
OTHERS_CODE = ("Split-Brain", "Counting", "Context", "BiGAN", "Colour", "Jigsaw")
"""Methods of the paper's tables that are not trained here."""


def heading(config: Config) -> list[str]:
    """What a file opens with: its commands, and every figure it is to reach."""
    lines = [f"# and-dist train --config configs/paper/{config.name}.yaml"]
    if any(key.startswith("linear") for place in config.paper for key in FIGURES[place]):
        lines.append(f"# and-dist evaluate {config.folder} --linear")
    for place in config.paper:
        where, *cell = place.split("/")
        names = {"knn": "kNN"}
        figures = "; ".join(f"{names.get(key, key)} {v}" for key, v in FIGURES[place].items())
        said = f"{figures} %" if figures else "no figure"
        lines.append(f"# {where.capitalize()}: {said} ({', '.join(cell)})")
    return lines


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_it_opens_with_its_command_and_the_published_figure(file: Path) -> None:
    config = load_config([file])
    assert config.name == file.stem
    expected = heading(config)
    assert len(expected) > 1
    assert file.read_text().splitlines()[: len(expected)] == expected


def test_every_figure_that_can_be_trained_here_has_one_file() -> None:
    claimed = [place for file in FILES for place in load_config([file]).paper]
    assert len(set(claimed)) == len(claimed)
    ours = {place for place in FIGURES if place.split("/")[1] not in OTHERS_CODE}
    assert set(claimed) == ours


METHODS = {
    "Instance": "instance",
    "DeepCluster": "deepcluster",
    "NAT": "nat",
    "Supervised": "supervised",
    "Random": "random",
}
"""Rows of tables 1 to 3; all else is AND's."""
NETWORKS = {"table 1": "cifar_alexnet", "table 2": "alexnet", "table 3": "resnet18"}


def promised(place: str, is_literal: bool) -> dict[str, Any]:
    """What was trained for a figure of the paper: by its code's recipe, or as it is printed."""
    where, row, column = place.split("/")
    is_small = column in ("CIFAR10", "CIFAR100", "SVHN")
    if where == "table 4":
        network = ("cifar_" if is_small else "") + row.lower()
    else:
        network = NETWORKS.get(where, "cifar_resnet18")
    method = METHODS.get(row, "and") if where in NETWORKS else "and"
    number = re.search(r"\d+$|^\d+", row)
    of_row = int(number[0]) if number else 0
    epochs = of_row if where == "section 4.2" else 200
    rounds = of_row if where == "figure 5" else 1 if row == "One-off" else 4
    return {
        "data.train": f"data/{column.lower()}/train",
        "data.test": f"data/{column.lower()}/test",
        "data.image_size": 32 if is_small else 224,
        "data.limit": None,
        "encoder.name": network,
        "encoder.feature_dim": 128,
        "method": method,
        "objective.temperature": 0.1 if is_small else 0.07,
        "bank.update_rate": 0.5,
        "bank.renormalise": not is_literal,
        "bank.init": "features" if row in ("Random", "Random Model") else "uniform",
        "curriculum.neighbours": of_row if where == "figure 4" else 1,
        "curriculum.rounds": rounds if method == "and" else 0,
        "curriculum.start": "random" if row == "Random Model" else "instance",
        "curriculum.epochs": epochs,
        "optim.milestones": [epochs * at // 200 for at in ((80,) * is_literal + (120, 160))],
        "optim.batch_size": 256 if column == "ImageNet" else 128,
        "optim.lr": 0.03,
        "optim.momentum": 0.9,
        "optim.nesterov": True,
        "optim.weight_decay": 5e-4 if is_small else 1e-4,
        "evaluation.knn": 200,
        "evaluation.knn_temperature": 0.1 if is_small and not is_literal else 0.07,
    }


@pytest.mark.parametrize("is_literal", [False, True], ids=["code", "as printed"])
@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_it_is_what_the_paper_trained_for_its_figures(file: Path, is_literal: bool) -> None:
    config = load_config([file, *[literal_of(file)] * is_literal])
    found = flatten(config.model_dump(mode="json"))
    assert config.paper
    assert config.paper == load_config([file]).paper
    for place in config.paper:
        expected = promised(place, is_literal)
        assert {key: found[key] for key in expected} == expected, place


def literal_of(file: Path) -> Path:
    """The layer that makes a config that of the paper as printed."""
    own = Path(f"configs/paper-literal-{file.stem.removeprefix('cifar10-resnet18-')}.yaml")
    return own if own.exists() else Path("configs/paper-literal.yaml")


def test_images_are_normalised_as_published() -> None:
    published = {"cifar10": (0.2023, 0.1994, 0.2010), "svhn": (0.1201, 0.1231, 0.1052)}
    for data, deviations in published.items():
        assert load_config([f"configs/paper/{data}-alexnet.yaml"]).data.std == deviations


def begin_as_before(name: str, root: Path, *overrides: str) -> Path:
    """What an earlier revision wrote into the run folder of an experiment."""
    literal = ["preset=paper", "data.std=[0.2470, 0.2435, 0.2616]", f"run.root={root}"]
    config = load_config([Path(f"configs/paper/{name}.yaml")], [*literal, *overrides])
    written = config.model_dump(mode="json")
    written["paper"] = list(load_config([Path(f"configs/paper/{name}.yaml")]).paper)
    del written["data"]["hue_model"], written["encoder"]["init"], written["curriculum"]["share"]
    del written["evaluation"]["linear"]["crops"]
    (root / name).mkdir()
    (root / name / "config.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
    return root / name / "config.yaml"


def test_classifiers_of_a_run_of_before_keep_its_crops(tmp_path: Path) -> None:
    begin_as_before("imagenet-alexnet", tmp_path)
    files = [Path("configs/paper/imagenet-alexnet.yaml")]
    assert load_config(files).evaluation.linear.crops == "published"
    assert load_config(files, [f"run.root={tmp_path}"]).evaluation.linear.crops == "as_training"


@pytest.mark.parametrize(
    ("name", "milestones"),
    [("cifar10-resnet18", [80, 120, 160]), ("cifar10-resnet18-50-epochs", [20, 30, 40])],
)
def test_an_experiment_that_was_begun_before_goes_on(
    name: str, milestones: list[int], tmp_path: Path
) -> None:
    written = begin_as_before(name, tmp_path, f"optim.milestones={milestones}")
    command = [Path(f"configs/paper/{name}.yaml")], [f"run.root={tmp_path}"]
    for _ in range(2):
        config = load_config(*command)
        check_run_folder(config)
        assert (config.preset, config.bank.renormalise) == ("paper", False)
        assert (config.data.std, config.data.hue_model) == ((0.2470, 0.2435, 0.2616), "yiq")
        assert list(config.optim.milestones) == milestones
        assert config.paper == load_config(command[0]).paper
        written.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    # What a user asks for is still refused if the run was begun with something else.
    for asked in ("preset=code", "optim.milestones=[7]", "data.hue_model=hsv"):
        with pytest.raises(ValueError, match=f"belongs to another config.*{asked.split('=')[0]}"):
            check_run_folder(load_config(command[0], [*command[1], asked]))


def with_one_of_a_kind_in_make_test() -> list[ParameterSet]:
    """Give every file; those that train the network and method of one before are thorough."""
    given, kinds = [], set()
    for file in FILES:
        config = load_config([file])
        kind = (config.encoder, config.method, config.data.image_size, config.curriculum.start)
        is_another = str(kind) in kinds
        kinds.add(str(kind))
        marks = pytest.mark.thorough if is_another else ()
        given.append(pytest.param(file, id=file.stem, marks=marks))
    return given


@pytest.mark.parametrize("file", with_one_of_a_kind_in_make_test())
def test_it_trains(file: Path, tmp_path: Path) -> None:
    """Its network and method, two steps on two images each of its size, but not its many rows.

    AND's are steps of its last round, with neighbours for all anchors; `random` only looks.
    """
    rows = load_config([file]).curriculum.neighbours + 8
    small = ("data.train=shapes/train", "data.test=null", f"data.limit={rows}")
    fewer = ("optim.batch_size=2", "instance_nce.negatives=4", "deepcluster.clusters=3")
    where = (f"run.root={tmp_path}", "run.device=cpu", "run.threads=2")
    config = load_config([file], [*small, *fewer, *where])
    open_run_folder(config, 1, "cpu")
    train, test = load_train_and_test(config.data)
    with open_world("cpu", config.run.threads) as world:
        trainer = Trainer(config, world, train, test, Display(is_shown=False), Watchdog())
        if config.num_epochs == 0:
            assert config.method == "random"
            assert trainer.state.encoder(images_of(config, 0)).shape == (2, 128)
            return
        trainer.state.objective.begin_epoch(0, trainer.state.optimiser)
        trainer.round_setup.begin_round(config.last_round)
        if config.method == "and":
            found = trainer.state.neighbourhoods
            assert len(found.anchors_A) == rows
            assert (found.neighbours_NK >= 0).sum() == rows * config.curriculum.neighbours
        before = trainer.state.encoder.head.weight.detach().clone()
        for step in range(2):
            rows_B = torch.tensor([2 * step, 2 * step + 1])
            assert trainer.train_step(Batch(images_of(config, step), rows_B)).isfinite()
        assert trainer.state.encoder.head.weight.shape == (128, before.shape[1])
        assert not torch.equal(trainer.state.encoder.head.weight, before)


def images_of(config: Config, seed: int) -> Tensor:
    side = config.data.image_size
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed))
