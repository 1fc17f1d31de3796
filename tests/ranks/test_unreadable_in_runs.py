"""A run over a folder with a broken file: out of loss, mean and bank, at any world size."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from and_dist.config.schema import Config
from and_dist.data.datasets import index_folder, load_train_and_test
from and_dist.data.unreadable import BadImages
from and_dist.distributed.collectives import gather_objects
from and_dist.distributed.world import World
from and_dist.evaluation.evaluator import Evaluator
from and_dist.method.memory_bank import MemoryBank, shard_range
from and_dist.models.encoders import build_encoder
from and_dist.runs.console import Display
from benchmarks.common.rank_pool import RankError, RankPool
from tests import reference
from tests.pictures import cut_header, save_pictures
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
    from and_dist.method.memory_bank import draw_uniform_rows

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


class Looked(NamedTuple):
    """By kNN, at test images, on one rank."""

    by_bank_M: Tensor
    anew_M: Tensor
    bank_SD: Tensor
    train_SD: Tensor
    test_MD: Tensor


def look(world: World, config: Config, out: Path, stand_in: int) -> Looked:
    """The bank's row of what cannot be read holds the features of a test image."""
    images, test = load_train_and_test(config.data)
    assert test is not None
    bad = BadImages(images.index, "skip")
    evaluator = Evaluator(config, images, test, world, bad, Display(is_shown=False).phase)
    encoder = build_encoder(config.encoder, 0).eval()
    dim, broken = config.encoder.feature_dim, list(images.index.store.names).index(BROKEN_OF_TWO)
    train_SD = evaluator.train_features(encoder, dim)
    test_MD = evaluator._test_features(encoder, dim)
    bank = MemoryBank(train_SD.clone(), shard_range(COUNT, world.rank, world.size)[0], COUNT, 0.5)
    test_TD = torch.from_numpy(np.concatenate(gather_objects(world, test_MD.numpy())))
    if 0 <= broken - bank.start < len(train_SD):
        bank.features_SD[broken - bank.start] = test_TD[stand_in]
    by_bank_M, anew_M, _ = evaluator.places_of_both(encoder, bank)
    evaluator.share_bad_images(out)
    return Looked(by_bank_M, anew_M, bank.features_SD, train_SD, test_MD)


BROKEN_OF_TWO = "b/060.jpg"


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """101 pictures of two classes, one of them broken, and 9 for the test."""
    save_pictures(tmp_path / "train", [(40, 36)] * COUNT, classes="ab")
    save_pictures(tmp_path / "test", [(32, 30)] * 9, classes="ab")
    cut_header(tmp_path / "train" / BROKEN_OF_TWO)
    return tmp_path


def knn_config(classes: Path, *overrides: str) -> Config:
    data = (f"data.train={classes / 'train'}", f"data.test={classes / 'test'}", "data.limit=null")
    return debug_config(classes, *data, "data.limit_test=null", "data.bad_images=skip", *overrides)


@pytest.mark.parametrize("size", [1, 3])
def test_a_row_that_cannot_be_read_has_no_vote(ranks: RankPool, classes: Path, size: int) -> None:
    """Known to one rank, nearest to a test image, and yet: every vote as by hand."""
    config = knn_config(classes, "evaluation.knn=7")
    found = Looked(*map(torch.cat, zip(*ranks.run(size, look, config, classes, 3), strict=True)))
    images, test = load_train_and_test(config.data)
    assert test is not None
    assert images.labels_N is not None
    assert test.labels_N is not None
    broken = list(images.index.store.names).index(BROKEN_OF_TWO)
    labels_N = torch.tensor(images.labels_N)
    nobodys_N = labels_N.clone()
    nobodys_N[broken] = 2
    would_differ = 0
    for rows_ND, places_M in ((found.bank_SD, found.by_bank_M), (found.train_SD, found.anew_M)):
        for query_D, label, place in zip(found.test_MD, test.labels_N, places_M, strict=True):
            near = (query_D.double(), rows_ND.double())
            votes, counted = (
                reference.knn_votes(*near, labels, 7, config.evaluation.knn_temperature)
                for labels in (nobodys_N, labels_N)
            )
            mine, other = (votes.get(which, 0.0) for which in (int(label), 1 - int(label)))
            assert int(place) == int(mine < other or (mine == other and label == 1))
            would_differ += votes.get(2, 0.0) > 0 and counted != votes
    assert would_differ
    (line,) = (classes / "bad_images.txt").read_text().splitlines()
    assert line.startswith(f"{classes / 'train' / BROKEN_OF_TWO}: ")


def test_too_many_over_all_ranks_end_an_evaluation(ranks: RankPool, classes: Path) -> None:
    """One of 101 a rank is within 1 %, two of them are not."""
    cut_header(classes / "train/a/007.jpg")
    with pytest.raises(RankError, match="2 of 101 images cannot be read, more than 1%") as caught:
        ranks.run(3, look, knn_config(classes), classes, 3)
    assert sorted(caught.value.errors) == [0, 1, 2]
