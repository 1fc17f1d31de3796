"""What is found where a user's images lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from and_dist.data.preparation.prepare import Job, prepare
from and_dist.data.survey import MOST_MEASURED, find_splits, survey
from and_dist.data.transcode import PackOptions
from and_dist.utils.progress import NoReport
from tests.pictures import save_pictures, write


def test_a_flat_folder(tmp_path: Path) -> None:
    save_pictures(tmp_path, [(30, 20)] * 5 + [(300, 200)] * 2)
    write(tmp_path / "notes.txt", "no image")
    found = survey(str(tmp_path))
    assert (found.train, found.test, found.num_images) == (str(tmp_path), None, 7)
    assert (found.class_names, found.width, found.height, found.shorter) == ((), 30, 20, 20)
    assert found.describe().endswith(": 7 images, 30 x 20 pixels (median)")


def test_class_folders_and_a_limit(tmp_path: Path) -> None:
    for label in ("a", "b"):
        save_pictures(tmp_path / label, [(30, 20)] * 3)
    assert survey(str(tmp_path)).class_names == ("a", "b")
    assert survey(str(tmp_path), limit=4).num_images == 4


def test_more_images_than_are_measured(tmp_path: Path) -> None:
    save_pictures(tmp_path, [(10, 8)])
    for at in range(MOST_MEASURED + 20):
        (tmp_path / f"z{at:04}.jpg").symlink_to(tmp_path / "0.jpg")
    write(tmp_path / "a_bad_one.jpg", "no image")
    found = survey(str(tmp_path))
    assert (found.num_images, found.width) == (MOST_MEASURED + 22, 10)


@pytest.mark.parametrize(
    ("inside", "test"),
    [
        (("train", "val"), "val"),
        (("train", "test"), "test"),
        (("train", "test", "validation"), "validation"),
        (("train",), None),
        (("train", "val", ".cache"), "val"),
    ],
)
def test_train_and_val_are_taken_apart(
    tmp_path: Path, inside: tuple[str, ...], test: str | None
) -> None:
    for name in inside:
        save_pictures(tmp_path / name / "a", [(10, 8)])
    expected = str(tmp_path / "train"), None if test is None else str(tmp_path / test)
    assert find_splits(f"{tmp_path}/") == expected


@pytest.mark.parametrize("inside", [("train", "bus"), ("val", "test"), ("a", "b"), ()])
def test_classes_are_not_taken_apart(tmp_path: Path, inside: tuple[str, ...]) -> None:
    for name in inside:
        save_pictures(tmp_path / name, [(10, 8)])
    assert find_splits(f"{tmp_path}/") == (str(tmp_path), None)


def test_prepared_and_embedded_sets(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "val/a"):
        save_pictures(tmp_path / "photos" / name, [(30, 20)] * 3)
    prepare(Job(tmp_path / "photos", tmp_path / "out", PackOptions(), "stop", 1, NoReport()))
    found = survey(str(tmp_path / "out"))
    assert (found.train, found.test) == (str(tmp_path / "out/train"), str(tmp_path / "out/test"))
    assert (found.num_images, found.class_names, found.is_encoded) == (6, ("a", "b"), True)
    shapes = survey("shapes/test")
    assert (shapes.num_images, shapes.shorter, shapes.is_encoded) == (500, 32, False)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.train=.*holds no image"):
        survey(str(tmp_path))
    for at in range(3):
        write(tmp_path / f"{at}.jpg", "no image")
    with pytest.raises(ValueError, match="3 of its files are no images"):
        survey(str(tmp_path))
    with pytest.raises(ValueError, match="is not a folder of images"):
        survey(str(tmp_path / "nowhere"))
