"""A run that the published code has left goes on here, from its bank, neighbours and momentum."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from and_dist.data.datasets import load_train_and_test
from and_dist.models.published_run import read_published_run
from and_dist.training.published import check_published
from benchmarks.common.rank_pool import RankPool
from tests.ranks.published import publish
from tests.ranks.runs import checkpoint_of, debug_config, metrics_of, train, train_here, train_until

EPOCHS = 5
"""The run dies in the third epoch of round 1, so that two of them are saved."""


def consistency_of(folder: Path) -> float:
    (found,) = [r for r in metrics_of(folder) if r["event"] == "discovery"]
    return float(found["consistent"] / (found["consistent"] + found["inconsistent"]))


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, ranks: RankPool) -> Callable[[int], Path]:
    """A function of the number of ranks, which returns what was left of a run."""
    files: dict[int, Path] = {}

    def of(size: int) -> Path:
        if size not in files:
            root = tmp_path_factory.mktemp(f"left-{size}")
            config = debug_config(root)
            ranks.run(size, train_until, config, EPOCHS)
            files[size] = root / "0001-00100.ckpt"
            share = consistency_of(config.folder)
            publish(config.folder, files[size], share, round_index=1, epoch=1)
        return files[size]

    return of


def taking_up(file: Path, *overrides: str) -> tuple[str, ...]:
    return (f"encoder.weights={file}", f"bank.weights={file}", "bank.init=uniform", *overrides)


@pytest.mark.parametrize("size", [1, 2])
def test_it_learns_what_our_own_run_would_have(
    ranks: RankPool, left: Callable[[int], Path], tmp_path: Path, size: int
) -> None:
    whole, going_on = (
        debug_config(tmp_path / "whole"),
        debug_config(tmp_path, *taking_up(left(size))),
    )
    ranks.run(size, train, whole)
    ranks.run(size, train, going_on)
    ours, theirs = checkpoint_of(going_on.folder), checkpoint_of(whole.folder)
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if not torch.equal(ours[n], theirs[n])] == []
    ended = [
        {key: r[key] for key in ("round", "anchors", "consistency", "knn_bank", "knn")}
        for folder in (going_on.folder, whole.folder)
        for r in metrics_of(folder)
        if r["event"] == "round" and r["round"] > 0
    ]
    assert ended[:2] == ended[2:]


def test_its_neighbourhoods_can_be_studied_without_training(
    left: Callable[[int], Path], tmp_path: Path
) -> None:
    """A run that ends where it was taken up has their neighbourhoods in its checkpoint."""
    run = train_here(tmp_path, *taking_up(left(1), "curriculum.rounds=1", "curriculum.epochs=1"))
    published = read_published_run(left(1))
    tensors = checkpoint_of(run)
    assert torch.equal(tensors["bank"], published.bank.load())
    assert torch.equal(tensors["anchors"], published.anchors_A)
    assert torch.equal(tensors["neighbours"][published.anchors_A], published.neighbours_AK)
    assert [r["event"] for r in metrics_of(run)] == ["baselines", "discovery", "round"]
    assert consistency_of(run) == pytest.approx(published.consistency)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.limit=100"], "has a bank of 200 rows of 128 numbers, and the run has 100 images"),
        (["encoder.feature_dim=64", "encoder.weights=null"], "encoder.feature_dim=64"),
        (["curriculum.neighbours=2"], "1 neighbours of an anchor, and curriculum.neighbours=2"),
        (
            ["method=instance", "curriculum.rounds=0"],
            "saved in round 1, and this run ends with round 0",
        ),
        (["bank.weights=configs/debug.yaml"], "is no checkpoint of the published code"),
        (["bank.weights=nowhere.ckpt"], "is no checkpoint of the published code: No such file"),
        (["bank.init=features"], "bank.weights gives the first rows"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    left: Callable[[int], Path], tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        train_here(tmp_path, *taking_up(left(1), *overrides))
    assert not (tmp_path / "debug").exists()


def test_labels_tell_that_images_are_in_another_order(
    left: Callable[[int], Path], tmp_path: Path
) -> None:
    config = debug_config(tmp_path, *taking_up(left(1)))
    labels_N = load_train_and_test(config.data)[0].labels_N
    assert labels_N is not None
    check_published(config, labels_N, len(labels_N))
    check_published(config, None, len(labels_N))
    with pytest.raises(ValueError, match=r"in another order.* and 14\.0 % had it there; it takes"):
        check_published(config, np.sort(labels_N), len(labels_N))
