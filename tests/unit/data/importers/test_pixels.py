"""Small sets that come as pixels: what is read from them, and what is refused."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from and_dist.data.importers import find_listings
from tests.pictures import noise, tar_of, write
from tests.unit.data.importers.cifar import (
    CIFAR10_NAMES,
    CIFAR100_NAMES,
    CIFAR_IMAGES,
    CIFAR_LABELS,
    cifar10_binary,
    cifar10_python,
    cifar100_binary,
    cifar100_python,
    pickle_as_python2,
    planes,
)
from tests.unit.data.importers.listings import find_pair, labels, pixels

DIGITS = tuple("0123456789")


def assert_is_cifar(source: Path, class_names: tuple[str, ...]) -> None:
    train, test = find_pair(source)
    assert train.class_names == test.class_names == class_names
    assert (len(train), len(test)) == (15, 3)
    expected = [label % len(class_names) for label in CIFAR_LABELS]
    assert (labels(train), labels(test)) == (expected[:15], expected[15:])
    assert (pixels(train) == CIFAR_IMAGES[:15]).all()
    assert (pixels(test) == CIFAR_IMAGES[15:]).all()


CIFARS = pytest.mark.parametrize(
    ("build", "folder", "class_names"),
    [
        (cifar10_python, "cifar-10-batches-py", CIFAR10_NAMES),
        (cifar10_binary, "cifar-10-batches-bin", CIFAR10_NAMES),
        (cifar100_python, "cifar-100-python", CIFAR100_NAMES),
        (cifar100_binary, "cifar-100-binary", CIFAR100_NAMES),
    ],
)
CifarBuilder = Callable[[], dict[str, bytes]]


@CIFARS
@pytest.mark.parametrize("given", ["the folder", "the folder around it"])
def test_cifar_folder(
    tmp_path: Path, given: str, build: CifarBuilder, folder: str, class_names: tuple[str, ...]
) -> None:
    for name, content in build().items():
        write(tmp_path / folder / name, content)
    assert_is_cifar(tmp_path / folder if given == "the folder" else tmp_path, class_names)


@CIFARS
def test_cifar_archive(
    tmp_path: Path, build: CifarBuilder, folder: str, class_names: tuple[str, ...]
) -> None:
    archive = tar_of({f"{folder}/{name}": content for name, content in build().items()})
    name = folder.replace("batches-py", "python").replace("batches-bin", "binary") + ".tar.gz"
    assert_is_cifar(write(tmp_path / name, gzip.compress(archive, 1)), class_names)


def test_a_cifar_pickle_cannot_call_anything(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {marker}",)

    folder = tmp_path / "cifar-10-batches-py"
    for name, content in cifar10_python().items():
        write(folder / name, content)
    for protocol in (0, 2, 4):
        write(folder / "data_batch_2", pickle.dumps({b"data": Evil()}, protocol))
        sentence = "is of protocol 4" if protocol == 4 else r"names posix\.system"
        with pytest.raises(ValueError, match=f"data_batch_2 .* {sentence}"):
            find_listings(folder)
        assert not marker.exists()
    pickle.loads(pickle.dumps(Evil()))
    assert marker.exists()


@pytest.mark.parametrize(
    ("build", "file", "damage"),
    [
        (cifar10_python, "data_batch_3", lambda content: content[:500]),
        (cifar10_python, "batches.meta", lambda content: content[:20]),
        (cifar10_python, "test_batch", lambda _: pickle_as_python2({"labels": [1, 2]})),
        (cifar10_python, "batches.meta", lambda _: pickle_as_python2({"names": []})),
        (cifar10_binary, "data_batch_4.bin", lambda content: content[:-1]),
        (cifar10_binary, "test_batch.bin", lambda content: content[:-1]),
        (cifar100_binary, "train.bin", lambda content: content[:-7]),
    ],
)
def test_a_damaged_file_of_cifar_is_named(
    tmp_path: Path, build: CifarBuilder, file: str, damage: Callable[[bytes], bytes]
) -> None:
    for name, content in build().items():
        write(tmp_path / name, damage(content) if name == file else content)
    with pytest.raises(ValueError, match=file):
        find_listings(tmp_path)


def test_cifar_needs_a_label_for_every_image(tmp_path: Path) -> None:
    for name, content in cifar10_python().items():
        write(tmp_path / name, content)
    batch = {"labels": [1, 2], "data": planes(CIFAR_IMAGES[:3])}
    write(tmp_path / "data_batch_5", pickle_as_python2(batch))
    with pytest.raises(ValueError, match="data_batch_5"):
        find_listings(tmp_path)


def test_a_cifar_archive_cut_short_is_named(tmp_path: Path) -> None:
    archive = gzip.compress(tar_of(cifar10_python()))
    path = write(tmp_path / "cifar-10-python.tar.gz", archive[: len(archive) // 2])
    with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz cannot be read"):
        find_listings(path)


def save_svhn(folder: Path, split: str, images_NHWC: np.ndarray, digits: list[int]) -> None:
    published = np.array([digit or 10 for digit in digits], np.uint8)[:, None]
    content = {"X": images_NHWC.transpose(1, 2, 3, 0), "y": published}
    savemat(folder / f"{split}_32x32.mat", content, do_compression=True)


def test_svhn_counts_its_label_10_as_0(tmp_path: Path) -> None:
    images = noise(1, (9, 32, 32, 3))
    save_svhn(tmp_path, "train", images[:4], [0, 1, 9, 0])
    save_svhn(tmp_path, "test", images[4:7], [5, 0, 2])
    train, test = find_pair(tmp_path)
    assert train.class_names == test.class_names == DIGITS
    assert (labels(train), labels(test)) == ([0, 1, 9, 0], [5, 0, 2])
    assert (pixels(train) == images[:4]).all()
    assert (pixels(test) == images[4:7]).all()
    save_svhn(tmp_path, "extra", images[7:], [3, 4])
    extra = find_listings(tmp_path)[2]
    assert (extra.split, labels(extra)) == ("extra", [3, 4])
    assert (pixels(extra) == images[7:]).all()


@pytest.mark.parametrize("kept", [0, 60, 200, 5000])
def test_svhn_cut_short_is_named(tmp_path: Path, kept: int) -> None:
    save_svhn(tmp_path, "train", noise(1, (4, 32, 32, 3)), [1, 2, 3, 4])
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"train_32x32\.mat is no file of SVHN"):
        find_listings(tmp_path)


def test_svhn_needs_a_label_for_every_image(tmp_path: Path) -> None:
    save_svhn(tmp_path, "train", noise(1, (4, 32, 32, 3)), [1, 2, 3])
    with pytest.raises(ValueError, match=r"train_32x32\.mat"):
        find_listings(tmp_path)


def idx_of(values: np.ndarray) -> bytes:
    header = struct.pack(f">{values.ndim + 1}I", 0x800 + values.ndim, *values.shape)
    return header + values.tobytes()


def save_idx(folder: Path, prefix: str, images: np.ndarray, digits: list[int], end: str) -> None:
    pack = gzip.compress if end == ".gz" else bytes
    write(folder / f"{prefix}-images-idx3-ubyte{end}", pack(idx_of(images)))
    write(folder / f"{prefix}-labels-idx1-ubyte{end}", pack(idx_of(np.uint8(digits))))


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_files(tmp_path: Path, end: str) -> None:
    images = noise(2, (6, 28, 28))
    save_idx(tmp_path, "train", images[:4], [3, 0, 9, 1], end)
    save_idx(tmp_path, "t10k", images[4:], [9, 7], end)
    train, test = find_pair(tmp_path)
    assert train.class_names == test.class_names == DIGITS
    assert (labels(train), labels(test)) == ([3, 0, 9, 1], [9, 7])
    assert (pixels(train) == images[:4, :, :, None]).all()
    assert pixels(test).shape == (2, 28, 28, 3)
    assert (pixels(test) == images[4:, :, :, None]).all()


def test_idx_files_without_labels(tmp_path: Path) -> None:
    write(tmp_path / "train-images.idx3-ubyte", idx_of(noise(2, (3, 8, 6))))
    (train,) = find_listings(tmp_path)
    assert train.labels_N is None
    assert train.class_names == ()
    assert pixels(train).shape == (3, 8, 6, 3)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("kept", [0, 3, 15, 40, 700])
def test_idx_cut_short_is_named(tmp_path: Path, end: str, kept: int) -> None:
    save_idx(tmp_path, "train", noise(2, (4, 28, 28)), [1, 2, 3, 4], end)
    path = tmp_path / f"train-images-idx3-ubyte{end}"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="train-images-idx3-ubyte"):
        find_listings(tmp_path)


def test_idx_with_a_damaged_middle_is_named(tmp_path: Path) -> None:
    save_idx(tmp_path, "train", noise(2, (4, 28, 28)) // 16, [1, 2, 3, 4], ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[200:260] = b"\xff" * 60
    path.write_bytes(content)
    with pytest.raises(ValueError, match="train-images-idx3-ubyte"):
        find_listings(tmp_path)


def test_idx_needs_a_label_for_every_image(tmp_path: Path) -> None:
    save_idx(tmp_path, "train", noise(2, (4, 8, 8)), [1, 2, 3], "")
    with pytest.raises(ValueError, match="labels-idx1-ubyte has 3 labels for 4 images"):
        find_listings(tmp_path)


def test_idx_files_of_no_image_are_named(tmp_path: Path) -> None:
    save_idx(tmp_path, "train", noise(2, (0, 8, 8)), [], "")
    with pytest.raises(ValueError, match=f"{tmp_path} has no image in its train split"):
        find_listings(tmp_path)


def test_idx_of_another_kind_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train-images-idx3-ubyte", idx_of(noise(2, (64,))))
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is no idx file of 3 dim"):
        find_listings(tmp_path)
