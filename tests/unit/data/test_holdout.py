"""Images that are held out of the training set, chosen by a hash of the row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from and_dist.config.schema import DataConfig
from and_dist.data.datasets import hold_out, load_test, load_train, load_train_and_test
from and_dist.data.shapes import draw_shapes
from tests.pictures import save_pictures


def test_each_row_is_trained_on_or_held_out_by_its_number_alone() -> None:
    images = draw_shapes("train", 2000)
    train, held = hold_out(images, 0.1)
    assert held is not None
    assert len(train.index) + len(held.index) == 2000
    assert 160 <= len(held.index) <= 240
    assert images.labels_N is not None
    assert train.labels_N is not None
    assert held.labels_N is not None
    fewer, fewer_held = hold_out(images.first(1000), 0.1)
    assert fewer.labels_N is not None
    assert train.labels_N[: len(fewer.index)].tolist() == fewer.labels_N.tolist()
    assert fewer_held is not None
    assert held.labels_N[: len(fewer_held.index)].tolist() == fewer_held.labels_N.tolist()
    assert sorted([*train.labels_N, *held.labels_N]) == sorted(images.labels_N)


def test_every_share_has_hashes_of_its_own() -> None:
    images = draw_shapes("train", 200)
    hashes = {
        part.index.content_hash
        for share in (0.1, 0.2)
        for part in hold_out(images, share)
        if part is not None
    }
    assert len(hashes) == 4
    assert hold_out(images, 0) == (images, None)


def test_held_out_images_are_the_test_set_unless_another_is_named(tmp_path: Path) -> None:
    for label in ("a", "b"):
        save_pictures(tmp_path / label, [(10, 8)] * 40)
    config = DataConfig(train=str(tmp_path), test=None, holdout=0.25)
    train, test = load_train_and_test(config)
    assert test is not None
    names = [*train.index.store.names, *test.index.store.names]  # type: ignore[union-attr] # files
    assert len(set(names)) == 80
    assert load_train(config).index.content_hash == train.index.content_hash
    again = load_test(config, train)
    assert again is not None
    assert again.index.content_hash == test.index.content_hash
    few = load_train_and_test(config.model_copy(update={"limit_test": 5}))[1]
    assert few is not None
    assert len(few.index) == 5
    other = config.model_copy(update={"test": str(tmp_path)})
    trained, named = load_train_and_test(other)
    assert named is not None
    assert (len(trained.index), len(named.index)) == (len(train.index), 80)


def test_a_class_that_would_lose_every_training_image_is_not_tested() -> None:
    images = draw_shapes("train", 60)
    train, held = hold_out(images, 0.9)
    assert held is not None
    assert train.labels_N is not None
    assert held.labels_N is not None
    assert set(held.labels_N.tolist()) <= set(train.labels_N.tolist())
    assert len(train.index) + len(held.index) < 60
    assert np.bincount(train.labels_N, minlength=8).min() == 0


@pytest.mark.parametrize(("share", "said"), [(0.01, "test with"), (0.99, "train on")])
def test_a_share_that_leaves_none_is_refused(share: float, said: str) -> None:
    with pytest.raises(ValueError, match=f"of 4 images leaves none to {said}"):
        hold_out(draw_shapes("train", 4), share)
