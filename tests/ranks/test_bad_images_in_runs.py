"""A run over a folder with a broken file: out of loss, mean and bank, at any world size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from and_dist.config import Config
from and_dist.data.bad_images import BadImages
from and_dist.data.datasets import index_folder
from and_dist.world import World
from tests.pictures import cut_header, save_pictures
from tests.ranks.pool import RankError, RankPool
from tests.ranks.runs import (
    assert_equal_to_the_bit,
    checkpoint_of,
    debug_config,
    losses_of,
    train,
    train_until,
)

COUNT = 101
BROKEN = "041.jpg"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """101 pictures, one of them readable by its header alone."""
    path = save_pictures(tmp_path_factory.mktemp("images"), [(40, 36)] * COUNT)
    cut_header(path / BROKEN)
    return path


def config_for(folder: Path, root: Path, *overrides: str) -> Config:
    options = (f"data.train={folder}", "data.test=null", "bank.init=uniform", "curriculum.epochs=2")
    return debug_config(root, *options, "data.bad_images=skip", *overrides)


def test_a_broken_file_weighs_nothing_at_any_world_size(
    ranks: RankPool, folder: Path, tmp_path: Path
) -> None:
    losses = []
    for size in (1, 2, 3):
        config = config_for(folder, tmp_path, f"name=on{size}")
        ranks.run(size, train, config)
        losses.append(losses_of(config.folder))
        (line,) = (config.folder / "bad_images.txt").read_text().splitlines()
        assert line.startswith(f"{folder / BROKEN}: ")
    for other in losses[1:]:
        assert (other - losses[0]).abs().max() < 1e-4


def test_the_bank_row_of_a_broken_file_stays_as_it_began(
    ranks: RankPool, folder: Path, tmp_path: Path
) -> None:
    from and_dist.bank import draw_uniform_rows

    config = config_for(folder, tmp_path)
    ranks.run(2, train, config)
    bank_ND = checkpoint_of(config.folder)["bank"]
    row = list(index_folder(folder).index.store.names).index(BROKEN)
    first_ND = draw_uniform_rows(0, COUNT, 128, config.seed)
    changed = [r for r in range(COUNT) if not torch.equal(bank_ND[r], first_ND[r])]
    assert changed == [r for r in range(COUNT) if r != row]


def test_a_resumed_run_remembers_what_it_left_out(
    ranks: RankPool, folder: Path, tmp_path: Path
) -> None:
    whole = config_for(folder, tmp_path, "name=whole")
    broken = config_for(folder, tmp_path, "name=broken")
    ranks.run(2, train, whole)
    ranks.run(2, train_until, broken, 3)
    ranks.run(2, train, broken)
    assert_equal_to_the_bit(broken.folder, whole.folder)


def test_stop_names_the_file(ranks: RankPool, folder: Path, tmp_path: Path) -> None:
    config = config_for(folder, tmp_path, "data.bad_images=stop")
    with pytest.raises(RankError, match=rf"{BROKEN}: .*data\.bad_images=skip"):
        ranks.run(1, train, config)


def share_twice(world: World, folder: Path, file: Path) -> list[dict[int, str]]:
    """Every rank finds its own, later rank 1 one more."""
    bad = BadImages(index_folder(folder).index, "skip", print, largest_share=1.0)
    bad.add({10 * world.rank: f"found by {world.rank}", 5: "found by all"})
    bad.share(world, file)
    first = dict(bad.reasons)
    bad.add({7: "late"} if world.rank == 1 else {})
    bad.share(world, file)
    return [first, bad.reasons]


def test_all_ranks_know_what_each_has_found(ranks: RankPool, folder: Path, tmp_path: Path) -> None:
    first = {0: "found by 0", 5: "found by all", 10: "found by 1", 20: "found by 2"}
    file = tmp_path / "bad_images.txt"
    for found in ranks.run(3, share_twice, folder, file):
        assert found == [first, {**first, 7: "late"}]
    assert len(file.read_text().splitlines()) == 5
