"""Sources of images of every layout, whole and small."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.io import savemat

from tests.pictures import encode, save_pictures, tar_of, write
from tests.unit.data.importers.cifar import cifar10_binary, cifar10_python, cifar100_python

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def lay_flat(folder: Path) -> None:
    """Eight images in one folder."""
    save_pictures(folder, [(24, 18)] * 8, "", ["jpg", "png"])


def lay_classes(folder: Path) -> None:
    """Eight images in two class folders, in all formats that are taken."""
    suffixes = ["jpg", "png", "bmp", "webp", "tif", "ppm", "gif", "jpeg"]
    save_pictures(folder, [(24, 18)] * 8, "ab", suffixes)


def lay_splits(folder: Path) -> None:
    """A training and a validation folder."""
    for split in ("train", "val"):
        save_pictures(folder / split, [(24, 18)] * 4, "ab", ["png"])


def shard(classes: str = "ab") -> bytes:
    """A WebDataset shard."""
    files = {f"{at:03}.jpg": encode(at) for at in range(6)}
    return tar_of(files | {f"{at:03}.cls": classes[at % 2].encode() for at in range(6)})


def lay_shards(folder: Path) -> None:
    """Two tar shards."""
    for at in range(2):
        write(folder / f"train-{at}.tar", shard())


def idx(values: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    """An idx file, whose header may state another shape."""
    dimensions = values.ndim if shape is None else len(shape)
    header = struct.pack(f">{dimensions + 1}I", 0x800 + dimensions, *(shape or values.shape))
    return header + values.tobytes()


def lay_idx(folder: Path) -> None:
    """A set like MNIST: images as they are, labels in gzip."""
    write(folder / "train-images-idx3-ubyte", idx(np.zeros((6, 28, 28), np.uint8)))
    labels = gzip.compress(idx(np.arange(6, dtype=np.uint8)))
    write(folder / "train-labels-idx1-ubyte.gz", labels)


def _laid(build: Callable[[], dict[str, bytes]]) -> Callable[[Path], None]:
    def lay(folder: Path) -> None:
        for name, content in build().items():
            write(folder / name, content)

    return lay


def lay_cifar_archive(folder: Path) -> None:
    """CIFAR-10 as it is downloaded."""
    write(folder / "cifar-10-python.tar.gz", gzip.compress(tar_of(cifar10_python()), 1))


def lay_svhn(folder: Path) -> None:
    """The training images of SVHN."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"X": np.zeros((32, 32, 3, 6), np.uint8), "y": np.ones((6, 1), np.uint8)}
    savemat(folder / "train_32x32.mat", content, do_compression=True)


def lay_ilsvrc(folder: Path) -> None:
    """The tars of ImageNet, with a devkit."""
    inner = {f"n{at}.tar": tar_of({f"n{at}_{n}.JPEG": encode(n) for n in range(3)}) for at in "12"}
    write(folder / "ILSVRC2012_img_train.tar", tar_of(inner))
    val = {f"ILSVRC2012_val_{at}.JPEG": encode(at) for at in range(2)}
    write(folder / "ILSVRC2012_img_val.tar", tar_of(val))
    types = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array([(1, "n1", 0), (2, "n2", 0)], types)})
    truth = {"ILSVRC2012_validation_ground_truth.txt": b"1\n2\n", "meta.mat": meta.getvalue()}
    write(folder / DEVKIT, gzip.compress(tar_of({f"data/{k}": v for k, v in truth.items()})))


def lay_cub(folder: Path) -> None:
    """CUB-200-2011."""
    for at in range(4):
        write(folder / "images" / f"{at % 2}.x" / f"{at}.jpg", encode(at))
    tables = {
        "images": [f"{at} {at % 2}.x/{at}.jpg" for at in range(4)],
        "image_class_labels": [f"{at} {at % 2}" for at in range(4)],
        "train_test_split": [f"{at} {int(at < 2)}" for at in range(4)],
    }
    for name, lines in tables.items():
        write(folder / f"{name}.txt", "\n".join((*lines, "")))


def lay_dogs(folder: Path) -> None:
    """Stanford Dogs."""
    names = [f"{at % 2}-x/{at}.jpg" for at in range(4)]
    for at, name in enumerate(names):
        write(folder / "Images" / name, encode(at))
    for split, some in (("train", names[:2]), ("test", names[2:])):
        savemat(folder / f"{split}_list.mat", {"file_list": np.array(some, object)})


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "flat": lay_flat,
    "class folders": lay_classes,
    "train and val": lay_splits,
    "tar shards": lay_shards,
    "idx": lay_idx,
    "CIFAR-10": _laid(cifar10_python),
    "CIFAR-10 binary": _laid(cifar10_binary),
    "CIFAR-100": _laid(cifar100_python),
    "CIFAR-10 archive": lay_cifar_archive,
    "SVHN": lay_svhn,
    "ILSVRC2012": lay_ilsvrc,
    "CUB": lay_cub,
    "Stanford Dogs": lay_dogs,
}
FOLDERS = ("flat", "class folders", "train and val")
"""Layouts that training takes as they are."""
