"""List data sets that hold small images as pixels: CIFAR, SVHN, MNIST-style idx files."""

from __future__ import annotations

import gzip
import math
import os
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from and_dist.data.importers.guarded_tar import members_of, open_packed_tar
from and_dist.data.importers.listing import Listing, Pixels, check_room, load_mat, read_source
from and_dist.utils.pickled_names import PickleError
from and_dist.utils.plain_files import open_regular
from and_dist.utils.plain_pickle import read_pickle

CIFAR_SIDE = 32
"""Height and width of CIFAR's images."""
CIFAR_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "train", "test")
CIFAR_NAMES = ("batches.meta", "meta", "batches.meta.txt", "fine_label_names.txt")
CIFAR_FILES = (*CIFAR_BATCHES, *(f"{name}.bin" for name in CIFAR_BATCHES), *CIFAR_NAMES)
"""Names of the files of CIFAR, in both versions."""
MOST_CIFAR_BYTES = 10**9
"""The most bytes of all files of CIFAR together; the published ones have 180 MB."""
MOST_DEFLATED = 1032
"""The most bytes that a byte of gzip unpacks to."""
IDX_COPIES = 5
"""The bytes that a pixel of an idx file takes: read, as three channels, and stored."""
IDX_MAGIC = {3: 0x00000803, 1: 0x00000801}
"""The first four bytes of an idx file of uint8, by its number of dimensions."""


def find_cifar(source: Path) -> list[Listing] | None:
    """Return the splits of CIFAR-10 or CIFAR-100; None if its files are not there.

    `source` is the published folder or .tar.gz of the python or binary version.
    """
    files = dict(_files_of(source))
    try:
        return _splits_of_cifar(files)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _splits_of_cifar(files: dict[str, bytes]) -> list[Listing] | None:
    """Return the splits in the files of CIFAR by name; None if they are not all there."""
    for names, label_key, meta in (
        ([f"data_batch_{i}" for i in range(1, 6)], b"labels", ("batches.meta", b"label_names")),
        (["train"], b"fine_labels", ("meta", b"fine_label_names")),
    ):
        test = "test_batch" if len(names) > 1 else "test"
        if all(name in files for name in (*names, test, meta[0])):
            labels_of = _unpickle(files[meta[0]], meta[0], meta[1])
            classes = _class_names(labels_of[meta[1]], meta[0])
            return [
                _cifar_listing(
                    split,
                    {part: _unpickle(files[part], part, b"data", label_key) for part in parts},
                    label_key,
                    classes,
                )
                for split, parts in (("train", names), ("test", [test]))
            ]
    for names, test, extra, meta_name in (
        ([f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin", 1, "batches.meta.txt"),
        (["train.bin"], "test.bin", 2, "fine_label_names.txt"),
    ):
        if all(name in files for name in (*names, test, meta_name)):
            classes = tuple(files[meta_name].decode().split())
            return [
                _cifar_binary("train", {name: files[name] for name in names}, extra, classes),
                _cifar_binary("test", {test: files[test]}, extra, classes),
            ]
    return None


def find_svhn(source: Path) -> list[Listing] | None:
    """Return the splits of SVHN: train_32x32.mat and perhaps test_32x32.mat and extra_32x32.mat.

    Return None if there is no training file. The digit 0 is published as class 10.
    """
    if not (source / "train_32x32.mat").is_file():
        return None
    listings = []
    for split in ("train", "test", "extra"):
        path = source / f"{split}_32x32.mat"
        if not path.is_file():
            continue
        try:
            content = load_mat(path, str(path), "file of SVHN")
            pixels_HWCN, labels_N = np.asarray(content["X"]), np.asarray(content["y"])
        except KeyError as error:
            raise ValueError(f"{path} is no file of SVHN: it has no {error}") from None
        if pixels_HWCN.dtype != np.uint8 or pixels_HWCN.ndim != 4 or pixels_HWCN.shape[2] != 3:
            raise ValueError(f"{path} is no file of SVHN: its X are no images")
        if labels_N.dtype.kind not in "iuf":
            raise ValueError(f"{path} is no file of SVHN: its y are no labels")
        images_NHWC = np.ascontiguousarray(pixels_HWCN.transpose(3, 0, 1, 2))
        labels_N = labels_N.reshape(-1).astype(np.int64) % 10
        if len(labels_N) != len(images_NHWC):
            raise ValueError(f"{path} has {len(labels_N)} labels for {len(images_NHWC)} images")
        listings.append(Listing(split, Pixels(images_NHWC), labels_N, tuple("0123456789")))
    return listings


def find_idx(source: Path) -> list[Listing] | None:
    """Return the splits of MNIST-style idx files, gz or not; None if there are none.

    Gray images get three equal channels.
    """
    listings = []
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _idx_path(source, f"{prefix}-images", 3)
        if images is None:
            continue
        images_NHW = _read_idx(images, (0, 0, 0))
        labels = _idx_path(source, f"{prefix}-labels", 1)
        rows = len(images_NHW)
        labels_N = None if labels is None else _read_idx(labels, (rows,)).astype(np.int64)
        num_classes = 0 if labels_N is None else int(labels_N.max(initial=-1)) + 1
        pixels = Pixels(np.repeat(images_NHW[..., None], 3, axis=3))
        listings.append(Listing(split, pixels, labels_N, tuple(map(str, range(num_classes)))))
    return listings or None


def _cifar_listing(
    split: str, batches: dict[str, Any], label_key: bytes, class_names: tuple[str, ...]
) -> Listing:
    """Return a split of CIFAR's python version from its unpickled files."""
    for name, batch in batches.items():
        data, labels = batch[b"data"], batch[label_key]
        is_pixels = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2
        if not is_pixels or data.shape[1] != 3 * CIFAR_SIDE**2:
            raise ValueError(f"{name} is no file of CIFAR: its data are no images")
        if not isinstance(labels, list) or not all(
            type(label) is int and 0 <= label < len(class_names) for label in labels
        ):
            raise ValueError(f"{name} is no file of CIFAR: its labels are none of the classes")
        if len(labels) != len(data):
            raise ValueError(f"{name} of CIFAR has {len(labels)} labels for {len(data)} images")
    flat = np.concatenate([batch[b"data"] for batch in batches.values()])
    labels = np.concatenate([np.asarray(batch[label_key], np.int64) for batch in batches.values()])
    return Listing(split, Pixels(_planes_to_pixels(flat)), labels, class_names)


def _cifar_binary(
    split: str, parts: dict[str, bytes], extra: int, class_names: tuple[str, ...]
) -> Listing:
    """Return a split of CIFAR's binary version; `extra` bytes of labels begin each record."""
    record = extra + 3 * CIFAR_SIDE**2
    for name, content in parts.items():
        if len(content) % record:
            raise ValueError(f"{name} is cut short: {len(content)} bytes, {record} an image")
    records = np.frombuffer(b"".join(parts.values()), np.uint8).reshape(-1, record)
    pixels = Pixels(_planes_to_pixels(records[:, extra:]))
    return Listing(split, pixels, records[:, extra - 1].astype(np.int64), class_names)


def _planes_to_pixels(flat: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images [N, 32, 32, 3] of rows [N, 3072] that hold one plane a colour."""
    planes = flat.reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def _files_of(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the files of a CIFAR archive, or of a folder that may be CIFAR's."""
    if source.is_dir():
        for folder in (source, *source.glob("cifar-10*-b*"), *source.glob("cifar-100-python")):
            for name in CIFAR_FILES:
                if (folder / name).is_file():
                    yield name, read_source(folder / name, MOST_CIFAR_BYTES)
    elif source.name.startswith("cifar-10") and source.name.endswith((".tar.gz", ".tgz", ".tar")):
        try:
            with open_packed_tar(source, MOST_CIFAR_BYTES) as archive:
                for member in members_of(archive):
                    if member.isfile() and Path(member.name).name in CIFAR_FILES:
                        opened = archive.extractfile(member)
                        assert opened is not None
                        yield Path(member.name).name, opened.read()
        except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
            raise ValueError(f"{source} cannot be read: {error}") from None


def _unpickle(content: bytes, name: str, *keys: bytes) -> Any:
    """Return the content of a pickle of CIFAR; raise ValueError if it lacks one of the keys."""
    try:
        found, _ = read_pickle(content)
    except PickleError as error:
        raise ValueError(f"{name} is no file of CIFAR: {error}") from None
    for key in keys:
        if not isinstance(found, dict) or key not in found:
            raise ValueError(f"{name} is no file of CIFAR: it has no {key.decode()!r}")
    return found


def _class_names(found: Any, name: str) -> tuple[str, ...]:
    """Return the names of the classes, which Python 2 has written."""
    try:
        return tuple(name.decode() for name in found)
    except (AttributeError, TypeError, UnicodeDecodeError):
        raise ValueError(f"{name} is no file of CIFAR: its names of classes are none") from None


def _idx_path(source: Path, prefix: str, dimensions: int) -> Path | None:
    """Return the path of an idx file under any of its usual names; None if there is none."""
    names = [f"{prefix}{dash}idx{dimensions}-ubyte{end}" for dash in "-." for end in ("", ".gz")]
    return next((source / name for name in names if (source / name).is_file()), None)


def _read_idx(path: Path, wanted: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the array in an idx file of as many dimensions as `wanted`; labels have its shape.

    Raise ValueError if it is none or is cut short.
    """
    try:
        descriptor, length = open_regular(path)
        with os.fdopen(descriptor, "rb") as file:
            if path.suffix != ".gz":
                return _read_idx_array(file, path, wanted, length)
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read_idx_array(unpacked, path, wanted, MOST_DEFLATED * length)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _read_idx_array(
    file: IO[bytes] | gzip.GzipFile, path: Path, wanted: tuple[int, ...], most_bytes: int
) -> NDArray[np.uint8]:
    """Return the array in an open idx file, which has at most `most_bytes`."""
    dimensions = len(wanted)
    magic, *shape = struct.unpack(f">{dimensions + 1}I", file.read(4 * (dimensions + 1)))
    size, is_packed = math.prod(shape), isinstance(file, gzip.GzipFile)
    is_right = magic == IDX_MAGIC[dimensions] and size <= most_bytes
    if is_right and dimensions == 1 and shape != [*wanted]:
        raise ValueError(f"{path} has {shape[0]} labels for {wanted[0]} images")
    if is_right and (is_packed or most_bytes == size + 4 * (dimensions + 1)):
        check_room(path, IDX_COPIES * size)
        content = file.read(size + 1)  # of a packed file, whose length nobody knows, no more
        if len(content) == size:
            return np.frombuffer(content, np.uint8).reshape(shape)
    raise ValueError(f"{path} is no idx file of {dimensions} dimensions, or is cut short")
