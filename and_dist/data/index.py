"""ImageIndex: which image a row is, and what is known of it before it is read.

On disk it is a manifest, a folder of memory-mapped columns, labels in a file of their own:

    manifest.json   kind, number of rows, files or root, content hash
    names.bin name_ends.npy | file.npy offset.npy    where each image lies
    length.npy heights.npy widths.npy                bytes and sides
    labels.npy classes.json                          only where there are labels
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from and_dist.data.stores import ArchiveStore, FileStore, MemoryStore, Names, Store

FORMAT = 1
I32 = NDArray[np.int32]


@dataclass(frozen=True)
class ImageIndex:
    """Row i is image i of the store."""

    store: Store
    heights_N: I32
    widths_N: I32
    content_hash: str
    """Of names, sizes and sides, or of the pixels: a run goes on with the same images only."""

    def __len__(self) -> int:
        return len(self.heights_N)

    def first(self, count: int) -> ImageIndex:
        """The first rows only."""
        if count >= len(self):
            return self
        heights_N, widths_N = self.heights_N[:count], self.widths_N[:count]
        return ImageIndex(self.store, heights_N, widths_N, f"{self.content_hash}[:{count}]")


@dataclass(frozen=True)
class LabelledImages:
    """A data set. Labels lie apart from the images: training and discovery get the index alone."""

    index: ImageIndex
    labels_N: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """Images that are not in the index, and why."""

    def first(self, count: int | None) -> LabelledImages:
        """The first rows only; all of them for None."""
        if count is None:
            return self
        labels_N = None if self.labels_N is None else self.labels_N[:count]
        return replace(self, index=self.index.first(count), labels_N=labels_N)


def index_pixels(images_NHWC: NDArray[np.uint8], label: str) -> ImageIndex:
    """Images of one size, in memory."""
    count, height, width, _ = images_NHWC.shape
    heights_N, widths_N = np.full(count, height, np.int32), np.full(count, width, np.int32)
    offset_N = np.arange(count, dtype=np.int64) * 3 * height * width
    store = MemoryStore(images_NHWC.reshape(-1), offset_N, heights_N, widths_N, label)
    digest = hash_columns(images_NHWC)
    return ImageIndex(store, heights_N, widths_N, digest)


def index_files(
    root: Path, names: Names, length_N: NDArray[np.int64], heights_N: I32, widths_N: I32
) -> ImageIndex:
    """Images that are files of their own; the hash covers names and sizes, not where they lie."""
    digest = hash_columns(names.text, names.ends, length_N, heights_N, widths_N)
    return ImageIndex(FileStore(root, names), heights_N, widths_N, digest)


def index_archive(store: ArchiveStore, heights_N: I32) -> ImageIndex:
    """Images inside larger files; the hash covers the order and sizes of all of them."""
    columns = (store.file_N, store.offset_N, store.length_N, heights_N, store.widths_N)
    names = np.frombuffer("\0".join(file.name for file in store.files).encode(), np.uint8)
    return ImageIndex(store, heights_N, store.widths_N, hash_columns(names, *columns))


def hash_columns(*columns: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for column in columns:
        digest.update(f"{column.dtype.str}{column.shape}".encode())
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()[:16]


def save_manifest(images: LabelledImages, folder: Path, length_N: NDArray[np.int64]) -> None:
    """Write under another name, then rename: a manifest is whole or not there."""
    index, store = images.index, images.index.store
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    columns: dict[str, NDArray[Any]] = {
        "length": length_N, "heights": index.heights_N, "widths": index.widths_N
    }  # fmt: skip
    about: dict[str, Any] = {"format": FORMAT, "kind": store.kind, "rows": len(index)}
    if isinstance(store, FileStore):
        about["kind"] = "files"
        about["root"] = str(store.root)
        columns |= {"name_ends": store.names.ends}
        store.names.text.tofile(unfinished / "names.bin")
    elif isinstance(store, ArchiveStore):
        # What lies beside the manifest is named from there, so that both can be moved together.
        base = folder.absolute()
        about["files"] = [
            os.path.relpath(path, base) if path.is_relative_to(base.parent) else str(path)
            for path in store.files
        ]
        columns |= {"file": store.file_N, "offset": store.offset_N}
    else:
        raise AssertionError("pixels in memory have no manifest")
    for name, column in columns.items():
        np.save(unfinished / f"{name}.npy", column)
    if images.labels_N is not None:
        np.save(unfinished / "labels.npy", images.labels_N)
        (unfinished / "classes.json").write_text(json.dumps(images.class_names))
    about["content_hash"] = index.content_hash
    (unfinished / "manifest.json").write_text(json.dumps(about, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def open_manifest(folder: Path) -> LabelledImages:
    """Map the columns; nothing of them is read until it is used."""
    try:
        about = json.loads((folder / "manifest.json").read_text())
        if about.get("format") != FORMAT:
            raise ValueError(f"it is of format {about.get('format')}, this program reads {FORMAT}")
        columns = {file.stem: np.load(file, mmap_mode="r") for file in folder.glob("*.npy")}
        heights_N, widths_N = columns["heights"], columns["widths"]
        if about["kind"] == "files":
            names = Names(np.memmap(folder / "names.bin", np.uint8, "r"), columns["name_ends"])
            store: Store = FileStore(Path(about["root"]), names)
        else:
            files = tuple(folder / path for path in about["files"])
            where = columns["file"], columns["offset"], columns["length"]
            store = ArchiveStore(files, *where, widths_N, about["kind"])
        index = ImageIndex(store, heights_N, widths_N, about["content_hash"])
        if "labels" not in columns:
            return LabelledImages(index)
        class_names = json.loads((folder / "classes.json").read_text())
        return LabelledImages(index, np.asarray(columns["labels"]), tuple(class_names))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"manifest {folder} cannot be read: {error}") from None
