"""Every experiment of the paper: what its file says of itself, and that it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from and_dist.config import Config, load_config
from and_dist.data.datasets import load_train_and_test
from and_dist.data.loader import Batch
from and_dist.display import Display
from and_dist.guard import Guard
from and_dist.published import FIGURES
from and_dist.run_folder import open_run_folder
from and_dist.trainer import Trainer
from and_dist.world import open_world

FILES = sorted(Path("configs/paper").glob("*.yaml"))
NAMES = [file.stem for file in FILES]
OTHERS_CODE = ("Split-Brain", "Counting", "Context", "BiGAN", "Colour", "Jigsaw")
"""Methods of the paper's tables that are not trained here."""


def heading(config: Config) -> list[str]:
    """What a file opens with: its command, and every figure it is to reach."""
    lines = [f"# and-dist train --config configs/paper/{config.name}.yaml"]
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


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_it_trains(file: Path, tmp_path: Path) -> None:
    """Its network and method, two steps on two images each of its size, but not its many rows."""
    small = ("data.train=shapes/train", "data.test=null", "data.limit=8", "optim.batch_size=2")
    fewer = ("instance_nce.negatives=4", "deepcluster.clusters=3", "run.device=cpu")
    config = load_config([file], [*small, *fewer, f"run.root={tmp_path}", "run.threads=2"])
    open_run_folder(config, 1, "cpu")
    train, test = load_train_and_test(config.data)
    with open_world("cpu", config.run.threads) as world:
        trainer = Trainer(config, world, train, test, Display(is_shown=False), Guard())
        if trainer.peer is not None:
            trainer.peer.begin_epoch(0, trainer.state.optimiser)
        before = trainer.encoder.head.weight.detach().clone()
        for step in range(2):
            rows_B = torch.tensor([2 * step, 2 * step + 1])
            side = config.data.image_size
            images_BCHW = torch.rand(
                2, 3, side, side, generator=torch.Generator().manual_seed(step)
            )
            loss = trainer.train_step(Batch(images_BCHW, rows_B))
            assert loss.isfinite()
        assert trainer.encoder.head.weight.shape == (128, before.shape[1])
        assert not torch.equal(trainer.encoder.head.weight, before)
