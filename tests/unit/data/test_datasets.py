from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from and_dist.config.schema import DataConfig
from and_dist.data.datasets import index_folder, load_images, load_train_and_test
from and_dist.data.index import ImageIndex
from and_dist.data.shapes import draw_shapes
from tests.pictures import picture, save, save_pictures


def pixels_of(index: ImageIndex) -> np.ndarray:
    return np.stack([index.store.pixels(row) for row in range(len(index))])


def test_shapes_are_balanced_and_drawn_alike_each_time() -> None:
    train = draw_shapes("train", 2000)
    assert pixels_of(train.index).shape == (2000, 32, 32, 3)
    assert train.labels_N is not None
    assert np.bincount(train.labels_N).tolist() == [250] * 8
    assert (pixels_of(draw_shapes("train", 40).index) == pixels_of(train.index)[:40]).all()
    assert draw_shapes("test", 40).index.content_hash != draw_shapes("train", 40).index.content_hash


def test_shapes_cannot_be_told_by_colour_or_brightness() -> None:
    """A nearest-mean classifier on mean colour and brightness is near chance, 12.5 %."""
    train, test = draw_shapes("train", 2000), draw_shapes("test", 500)

    def statistics(pixels: np.ndarray) -> np.ndarray:
        return np.concatenate([pixels.mean(axis=(1, 2)), pixels.std(axis=(1, 2))], axis=1)

    ours, theirs = statistics(pixels_of(train.index)), statistics(pixels_of(test.index))
    centres = np.stack([ours[train.labels_N == label].mean(axis=0) for label in range(8)])
    guesses = ((theirs[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert (guesses == test.labels_N).mean() < 0.25


def test_class_folders_give_labels_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("dog/b.png", "dog/a.jpg", "cat/deep/x.png", ".hidden/y.png", "cat/.z.png"):
        save(tmp_path / name, picture(size=(10, 8)))
    images = index_folder(tmp_path)
    names = list(images.index.store.names)
    assert names == ["cat/deep/x.png", "dog/a.jpg", "dog/b.png"]
    assert images.class_names == ("cat", "dog")
    assert images.labels_N is not None
    assert images.labels_N.tolist() == [0, 1, 1]
    assert (images.index.heights_N[0], images.index.widths_N[0]) == (8, 10)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    save_pictures(tmp_path, [(10, 8)] * 2)
    assert index_folder(tmp_path).labels_N is None


def test_other_files_make_another_hash(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture())
    before = index_folder(tmp_path).index.content_hash
    assert index_folder(tmp_path).index.content_hash == before
    save(tmp_path / "b.png", picture())
    assert index_folder(tmp_path).index.content_hash != before


def test_wrong_folders_are_named_with_their_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.train=.*none: .* is not a folder of images"):
        load_images(str(tmp_path / "none"), None, "data.train")
    with pytest.raises(ValueError, match="holds no image"):
        load_images(str(tmp_path), None, "data.train")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"holds no image \(it holds 1 \.txt\)"):
        load_images(str(tmp_path), None, "data.train")
    (tmp_path / "notes.txt").rename(tmp_path / "notes.jpg")
    with pytest.raises(ValueError, match=r"notes\.jpg: its header is of no known"):
        load_images(str(tmp_path), None, "data.train")
    (tmp_path / "notes.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"notes\.jpg: it is empty"):
        load_images(str(tmp_path), None, "data.train")


def test_a_prepared_set_without_its_manifest_is_told(tmp_path: Path) -> None:
    """It would otherwise be said to hold no images, which is true and leads nowhere."""
    for name in ("heights", "widths", "offset"):
        np.save(tmp_path / f"{name}.npy", np.zeros(3, dtype=np.int32))
    with pytest.raises(ValueError, match=r"was prepared, and has lost its manifest\.json; prepare"):
        load_images(str(tmp_path), None, "data.train")


def test_limits_take_the_first_rows() -> None:
    train, test = load_train_and_test(DataConfig(limit=30, limit_test=20))
    assert test is not None
    assert (len(train.index), len(test.index)) == (30, 20)
    assert load_train_and_test(DataConfig(test=None))[1] is None
