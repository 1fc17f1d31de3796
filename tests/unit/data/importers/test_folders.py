"""Images that are files: CUB-200-2011, Stanford Dogs, class folders, flat ones, and no source."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from and_dist.data.importers import find_listings, listing
from tests.pictures import encode, write
from tests.unit.data.importers.listings import contents, find_pair, labels

CUB_ROWS = [
    ("1", "001.Albatross/Black_1.jpg", "1", "1"),
    ("2", "001.Albatross/Black_2.jpg", "1", "0"),
    ("3", "002.Auklet/Crested_1.jpg", "2", "0"),
    ("4", "010.Blackbird/Red_1.jpg", "10", "1"),
]
"""Number, file, class, and 1 where it is for training."""


def save_cub(folder: Path) -> list[bytes]:
    images = [encode(at) for at in range(len(CUB_ROWS))]
    for (_, file, _, _), content in zip(CUB_ROWS, images, strict=True):
        write(folder / "images" / file, content)
    tables = {
        "images": [f"{number} {file}" for number, file, _, _ in CUB_ROWS],
        "image_class_labels": [f"{number} {label}" for number, _, label, _ in CUB_ROWS],
        "train_test_split": [f"{number} {flag}" for number, _, _, flag in CUB_ROWS],
        "classes": ["1 001.Albatross", "2 002.Auklet", "10 010.Blackbird"],
        "bounding_boxes": [f"{number} 1.0 1.0 5.0 5.0" for number, _, _, _ in CUB_ROWS],
    }
    for name, lines in tables.items():
        write(folder / f"{name}.txt", "\n".join((*lines, "")))
    return images


def test_cub(tmp_path: Path) -> None:
    images = save_cub(tmp_path)
    train, test = find_pair(tmp_path)
    assert train.class_names == test.class_names == ("001.Albatross", "002.Auklet", "010.Blackbird")
    assert (labels(train), labels(test)) == ([0, 2], [0, 1])
    assert contents(train) == [images[0], images[3]]
    assert contents(test) == images[1:3]


@pytest.mark.parametrize("table", ["images", "image_class_labels", "train_test_split"])
def test_a_table_of_cub_that_is_none_is_named(tmp_path: Path, table: str) -> None:
    save_cub(tmp_path)
    (tmp_path / f"{table}.txt").write_text("1 a\nalone\n")
    with pytest.raises(ValueError, match=rf"{table}\.txt is not a table"):
        find_listings(tmp_path)


@pytest.mark.parametrize("table", ["image_class_labels", "train_test_split"])
def test_cub_needs_a_line_for_every_image(tmp_path: Path, table: str) -> None:
    save_cub(tmp_path)
    (tmp_path / f"{table}.txt").write_text("1 1\n2 1\n3 2\n")
    with pytest.raises(ValueError, match=rf"{table}\.txt has no line for image 4 of images\.txt"):
        find_listings(tmp_path)


def test_cub_with_nothing_to_test_is_a_training_set(tmp_path: Path) -> None:
    images = save_cub(tmp_path)
    (tmp_path / "train_test_split.txt").write_text("1 1\n2 1\n3 1\n4 1\n")
    (train,) = find_listings(tmp_path)
    assert train.split == "train"
    assert contents(train) == images


def test_cub_with_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    save_cub(tmp_path)
    (tmp_path / "train_test_split.txt").write_text("1 0\n2 0\n3 0\n4 0\n")
    with pytest.raises(ValueError, match=f"{tmp_path} has no image in its train split"):
        find_listings(tmp_path)


DOGS = {
    "train": ["n02-Chihuahua/n02_10.jpg", "n02-Chihuahua/n02_7.jpg", "n11-Husky/n11_1.jpg"],
    "test": ["n02-Chihuahua/n02_8.jpg", "n11-Husky/n11_2.jpg"],
}


def save_dogs(folder: Path, lists: Path) -> dict[str, bytes]:
    names = [name for split in DOGS.values() for name in split]
    images = {name: encode(number) for number, name in enumerate(names)}
    for name, content in images.items():
        write(folder / "Images" / name, content)
    lists.mkdir(exist_ok=True)
    for split, files in DOGS.items():
        cells = np.array(files, object)[:, None]
        numbers = np.array([1 + ("Husky" in file) for file in files], np.uint8)[:, None]
        savemat(lists / f"{split}_list.mat", {"file_list": cells, "labels": numbers})
    return images


@pytest.mark.parametrize("place", [".", "lists"])
def test_stanford_dogs(tmp_path: Path, place: str) -> None:
    images = save_dogs(tmp_path, tmp_path / place)
    train, test = find_pair(tmp_path)
    assert train.class_names == test.class_names == ("n02-Chihuahua", "n11-Husky")
    assert (labels(train), labels(test)) == ([0, 0, 1], [0, 1])
    assert contents(train) == [images[name] for name in DOGS["train"]]
    assert contents(test) == [images[name] for name in DOGS["test"]]


@pytest.mark.parametrize("kept", [0, 50, 200])
def test_a_damaged_list_of_stanford_dogs_is_named(tmp_path: Path, kept: int) -> None:
    save_dogs(tmp_path, tmp_path)
    path = tmp_path / "test_list.mat"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"test_list\.mat is no list of Stanford Dogs"):
        find_listings(tmp_path)


@pytest.mark.parametrize("outside", ["/etc/a.jpg", "../a.jpg", "n02-Chihuahua/../../a.jpg"])
def test_a_list_that_names_files_elsewhere_is_refused(tmp_path: Path, outside: str) -> None:
    save_dogs(tmp_path, tmp_path)
    cells = np.array([*DOGS["train"], outside], object)[:, None]
    savemat(tmp_path / "train_list.mat", {"file_list": cells})
    with pytest.raises(ValueError, match=f"names {outside}, which is not in .*Images"):
        find_listings(tmp_path)
    save_cub(tmp_path / "cub")
    table = tmp_path / "cub" / "images.txt"
    table.write_text(table.read_text().replace("001.Albatross/Black_1.jpg", outside))
    with pytest.raises(ValueError, match=f"names {outside}, which is not in .*images"):
        find_listings(tmp_path / "cub")


def crash(_file: object) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_list_at_which_its_reader_crashes_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save_dogs(tmp_path, tmp_path)
    monkeypatch.setattr(listing, "_read_mat", crash)
    with pytest.raises(ValueError, match=r"train_list\.mat is no list .*: its reader crashed"):
        find_listings(tmp_path)


@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "test"])
def test_train_and_held_out_folders(tmp_path: Path, held_out: str) -> None:
    for number, name in enumerate(("train/b/0.jpg", "train/a/1.JPEG", f"{held_out}/b/2.png")):
        write(tmp_path / name, encode(number))
    write(tmp_path / held_out / "a" / "deep" / "3.jpg", encode(3))
    train, test = find_pair(tmp_path)
    assert train.class_names == test.class_names == ("a", "b")
    assert (labels(train), labels(test)) == ([0, 1], [0, 1])
    assert contents(train) == [encode(1), encode(0)]
    assert contents(test) == [encode(3), encode(2)]


def test_two_held_out_folders_are_one_too_many(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        write(tmp_path / name / "a.jpg", encode(1))
    with pytest.raises(ValueError, match="holds several of val, test"):
        find_listings(tmp_path)


def test_class_folders(tmp_path: Path) -> None:
    for number, name in enumerate(("dog/x.jpg", "cat/deep/y.jpg", "cat-fish/z.jpg", "dog/a.jpg")):
        write(tmp_path / name, encode(number))
    (train,) = find_listings(tmp_path)
    assert (train.split, train.class_names) == ("train", ("cat", "cat-fish", "dog"))
    assert labels(train) == [0, 1, 2, 2]
    assert contents(train) == [encode(1), encode(2), encode(3), encode(0)]


def test_a_flat_folder_and_names_that_are_no_text(tmp_path: Path) -> None:
    names = ["b.jpg", "a b.jpg", "Ünï.jpg", os.fsdecode(b"\xff\xfe.jpg")]
    for number, name in enumerate(names):
        write(tmp_path / name, encode(number))
    (train,) = find_listings(tmp_path)
    assert (train.labels_N, train.class_names) == (None, ())
    assert contents(train) == [encode(names.index(name)) for name in sorted(names)]


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist"):
        find_listings(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"{tmp_path} holds no image"):
        find_listings(tmp_path)
    with pytest.raises(ValueError, match=r"notes\.txt is none of: CIFAR-10"):
        find_listings(write(tmp_path / "notes.txt", "hello"))
    with pytest.raises(ValueError, match=r"holds no image \(it holds 1 \.txt\)"):
        find_listings(tmp_path)
