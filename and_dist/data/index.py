"""Tell which image each row is, and its size and hash, before any image is read.

On disk an index is a manifest: a folder of memory-mapped columns, with labels in their own file.

    manifest.json   kind, number of rows, files or root, content hash, names and sizes of the rest
    names.bin name_ends.npy | file.npy offset.npy    where each image lies
    length.npy heights.npy widths.npy                bytes and sides
    labels.npy classes.json                          only where there are labels
    00000.tar | 00000.bin | pixels.bin               only where the images were packed
    bad_images.txt                                   only where some were left out, and why

A folder that holds anything else is never replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from and_dist.data.manifest import (
    AGAIN,
    FORMAT,
    MANIFEST,
    About,
    check_columns,
    check_files,
    is_column,
    read_about,
)
from and_dist.data.stores import ArchiveStore, FileStore, MemoryStore, Names, Store
from and_dist.utils.folder_names import Named, entries_of
from and_dist.utils.owned_files import always, open_new, read_json, sum_of, write_file
from and_dist.utils.owned_folders import NewFolder
from and_dist.utils.plain_files import check_regular, read_regular
from and_dist.utils.seals import seal

SIDES = ("length", "heights", "widths")
FILE_COLUMNS = ("name_ends",)
ARCHIVE_COLUMNS = ("file", "offset")
BAD_IMAGES = "bad_images.txt"
COLUMNS = r"(name_ends|file|offset|length|heights|widths|labels)\.npy"
"""A pattern of the columns' file names."""
PACKED_FILES = Named(r"\d{5}(-\d+)?\.(tar|bin)|pixels\.bin")
"""Names of the files that hold packed images."""
PART_COLUMNS = Named(r"\d{5}\.npz")
"""Names of the tables of a pack's parts, which are removed once its manifest is published."""
CONTENTS = Named(
    rf"manifest\.json|names\.bin|classes\.json|bad_images\.txt|{COLUMNS}|"
    r"\d{5}(-\d+)?\.(tar|bin)|pixels\.bin|\d{5}\.npz"
)
"""Names of all files that may lie in a manifest's folder while it is built."""
CHOOSE_ANOTHER = "choose another --out, or move it away"
"""The end of the error message about a folder that may not be replaced."""
I32 = NDArray[np.int32]


@dataclass(frozen=True)
class ImageIndex:
    """Hold where each image lies and its size; row i is image i of the store."""

    store: Store
    heights_N: I32
    widths_N: I32
    content_hash: str
    """A hash of names, sizes and sides, or of the pixels."""
    hash_of_all: Callable[[], str] | None = field(default=None, compare=False)
    """For the first rows of a folder alone, which returns the hash that earlier revisions gave
    them: they read the whole folder."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.heights_N)

    def first(self, count: int) -> ImageIndex:
        """Return an index of the first `count` rows."""
        if count >= len(self):
            return self
        heights_N, widths_N = self.heights_N[:count], self.widths_N[:count]
        return ImageIndex(self.store, heights_N, widths_N, f"{self.content_hash}[:{count}]")

    def select(self, rows: NDArray[np.int64], which: str) -> ImageIndex:
        """Return an index of some rows; `which` says in its hash which they are."""
        content_hash = f"{self.content_hash}[{which}]"
        sides = self.heights_N[rows], self.widths_N[rows]
        return ImageIndex(self.store.select(rows), *sides, content_hash)

    def holds(self, content_hash: str) -> bool:
        """Return whether these are the images of a hash that was written down earlier."""
        if content_hash == self.content_hash:
            return True
        return self.hash_of_all is not None and content_hash == self.hash_of_all()


@dataclass(frozen=True)
class LabelledImages:
    """Hold a data set.

    Labels lie apart from the images: training and discovery get the index alone.
    """

    index: ImageIndex
    labels_N: NDArray[np.int64] | None = None
    """The class of each row, or None without labels."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, in the order of their labels."""
    left_out: tuple[str, ...] = ()
    """One line for each image that is not in the index: its name and the reason."""
    ignored: str = ""
    """What else lies in the folder, such as `9 .txt, 2 hidden`."""

    def first(self, count: int | None) -> LabelledImages:
        """Return the first `count` rows; all rows if `count` is None."""
        if count is None:
            return self
        labels_N = None if self.labels_N is None else self.labels_N[:count]
        return replace(self, index=self.index.first(count), labels_N=labels_N)

    def select(self, rows: NDArray[np.int64], which: str) -> LabelledImages:
        """Return some rows; `which` says in the hash which they are."""
        labels_N = None if self.labels_N is None else self.labels_N[rows]
        return replace(self, index=self.index.select(rows, which), labels_N=labels_N)


def index_pixels(images_NHWC: NDArray[np.uint8], label: str) -> ImageIndex:
    """Return an index of images [N, H, W, 3] of one size in memory."""
    count, height, width, _ = images_NHWC.shape
    heights_N, widths_N = np.full(count, height, np.int32), np.full(count, width, np.int32)
    offset_N = np.arange(count, dtype=np.int64) * 3 * height * width
    store = MemoryStore(images_NHWC.reshape(-1), offset_N, heights_N, widths_N, label)
    digest = hash_columns(images_NHWC)
    return ImageIndex(store, heights_N, widths_N, digest)


def index_files(
    root: Path, names: Names, length_N: NDArray[np.int64], heights_N: I32, widths_N: I32
) -> ImageIndex:
    """Return an index of images that are files of their own.

    The hash covers names and sizes, not the folder, so that a data set may be moved.
    """
    digest = hash_columns(names.text, names.ends, length_N, heights_N, widths_N)
    return ImageIndex(FileStore(root, names), heights_N, widths_N, digest)


def index_archive(store: ArchiveStore, heights_N: I32) -> ImageIndex:
    """Return an index of images inside larger files.

    The hash covers the order and sizes of all of them.
    """
    columns = (store.file_N, store.offset_N, store.length_N, heights_N, store.widths_N)
    names = np.frombuffer(b"\0".join(os.fsencode(file.name) for file in store.files), np.uint8)
    return ImageIndex(store, heights_N, store.widths_N, hash_columns(names, *columns))


def hash_columns(*columns: NDArray[Any]) -> str:
    """Return the first 16 hex digits of the sha256 of columns, with their types and shapes."""
    digest = hashlib.sha256()
    for column in columns:
        digest.update(f"{column.dtype.str}{column.shape}".encode())
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()[:16]


def new_manifest_folder(folder: Path, fingerprint: str | None = None) -> NewFolder:
    """Start building the folder of a manifest aside.

    Raise NotOursError if `folder` exists and is not a manifest of this program. A folder with the
    same fingerprint that an interrupted run left is continued.
    """
    return NewFolder(folder, names_of_manifest, CONTENTS, fingerprint, CHOOSE_ANOTHER)


def save_manifest(images: LabelledImages, folder: Path, length_N: NDArray[np.int64]) -> None:
    """Write a manifest of images that stay where they are."""
    building = new_manifest_folder(folder)
    write_manifest(images, building.path, length_N)
    building.publish()


def write_manifest(
    images: LabelledImages,
    folder: Path,
    length_N: NDArray[np.int64],
    bad_images: Sequence[str] = (),
) -> None:
    """Write a manifest into the folder that is being built for it, manifest.json last.

    `length_N` are the bytes of each image; `bad_images` are the lines of bad_images.txt.
    """
    index, store = images.index, images.index.store
    columns: dict[str, NDArray[Any]] = {
        "length": length_N,
        "heights": index.heights_N,
        "widths": index.widths_N,
    }
    about: dict[str, Any] = {"format": FORMAT, "kind": store.kind, "rows": len(index)}
    if isinstance(store, FileStore):
        about["kind"] = "files"
        about["root"] = str(store.root)
        columns |= {"name_ends": store.names.ends}
        _write(folder / "names.bin", store.names.text.tobytes())
    elif isinstance(store, ArchiveStore):
        # Paths beside the manifest are stored relative to it, so that both can be moved together.
        base = folder.absolute()
        about["files"] = [
            os.path.relpath(path, base) if path.is_relative_to(base.parent) else str(path)
            for path in store.files
        ]
        columns |= {"file": store.file_N, "offset": store.offset_N}
    else:
        raise AssertionError("pixels in memory have no manifest")
    if images.labels_N is not None:
        columns |= {"labels": images.labels_N}
        _write(folder / "classes.json", json.dumps(images.class_names))
    for name, column in columns.items():
        with open_new(folder / f"{name}.npy", always) as file:
            np.save(file, column)
    if bad_images:
        _write(folder / BAD_IMAGES, "".join(f"{line}\n" for line in bad_images))
    names = [n for n in entries_of(folder) if n != MANIFEST and n not in PART_COLUMNS]
    about["content_hash"] = index.content_hash
    about["holds"] = {name: (folder / name).stat().st_size for name in names}
    about["sums"] = {name: sum_of(folder / name) for name in names if is_column(name)}
    _write(folder / MANIFEST, json.dumps(seal(about, MANIFEST), indent=1))


def _write(path: Path, content: str | bytes) -> None:
    """Write a file of the manifest, over an earlier one if there is one."""
    write_file(path, content, always)


def names_of_manifest(folder: Path) -> Container[str] | None:
    """Return the names that a manifest of ours accounts for; None if there is no such manifest.

    A file whose size differs from the one in the manifest does not count as ours.
    """
    about = read_json(folder / MANIFEST)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        return None
    if not {"kind", "rows", "content_hash"} <= about.keys():
        return None
    if not isinstance(about.get("holds"), dict):  # earlier revisions did not list their files
        return Named(rf"manifest\.json|names\.bin|classes\.json|{COLUMNS}")
    sizes = {MANIFEST: (folder / MANIFEST).stat().st_size, **about["holds"]}
    kept = {n for n in entries_of(folder) if n in PART_COLUMNS and is_part_columns(folder / n)}
    return kept | {name for name, size in sizes.items() if _size_of(folder / name) == size}


def is_part_columns(path: Path) -> bool:
    """Return whether a file is a table that write_part leaves beside a part of a pack."""
    try:
        check_regular(path)
        with np.load(path) as columns:
            return "fingerprint" in columns.files
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile):
        return False


def _size_of(path: Path) -> int | None:
    """Return the size of a file in bytes; None if there is none."""
    try:
        return path.lstat().st_size
    except OSError:
        return None


def open_manifest(folder: Path) -> LabelledImages:
    """Open a manifest and map its columns into memory, so that none of them is held there.

    Raise ValueError if it cannot be read, is of another format, or is not as it was written.
    """
    about = read_about(folder)
    try:
        check_files(folder, about)
        names = (*SIDES, *(FILE_COLUMNS if about.kind == "files" else ARCHIVE_COLUMNS))
        columns = {name: _map_column(folder, name) for name in names}
        is_labelled = (folder / "labels.npy").exists()
        if is_labelled != (folder / "classes.json").exists():
            raise ValueError(f"only one of labels.npy and classes.json is there; {AGAIN}")
        class_names: tuple[str, ...] = ()
        if is_labelled:
            columns["labels"] = _map_column(folder, "labels")
            class_names = tuple(json.loads(read_regular(folder / "classes.json")))
        check_columns(columns, about, len(class_names))
        index = ImageIndex(
            _open_store(folder, about, columns),
            columns["heights"],
            columns["widths"],
            about.content_hash,
        )
        if not about.sums:
            _check_hash(index, about, columns["length"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"manifest {folder} cannot be read: {error}") from None
    labels_N = np.asarray(columns["labels"]) if is_labelled else None
    return LabelledImages(index, labels_N, class_names)


def _map_column(folder: Path, name: str) -> NDArray[Any]:
    """Return a column that is mapped into memory; raise ValueError where it is none."""
    try:
        check_regular(folder / f"{name}.npy")
        column: NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r")
        return column
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise ValueError(f"{name}.npy: {error}; {AGAIN}") from None


def _open_store(folder: Path, about: About, columns: dict[str, NDArray[Any]]) -> Store:
    """Return the store of a manifest's images; raise ValueError for places that cannot be."""
    if about.kind == "files":
        check_regular(folder / "names.bin")
        text, ends_N = np.memmap(folder / "names.bin", np.uint8, "r"), columns["name_ends"]
        if len(ends_N) == 0 or ends_N[-1] != len(text) or (np.diff(ends_N, prepend=0) < 0).any():
            raise ValueError(f"name_ends.npy does not fit names.bin; {AGAIN}")
        return FileStore(Path(about.root or ""), Names(text, ends_N))
    files = tuple(folder / path for path in about.files or ())
    if columns["file"].max(initial=0) >= len(files):
        raise ValueError(f"file.npy has a file that {MANIFEST} does not name; {AGAIN}")
    where = columns["file"], columns["offset"], columns["length"]
    return ArchiveStore(files, *where, columns["widths"], about.kind)


def _check_hash(index: ImageIndex, about: About, length_N: NDArray[np.int64]) -> None:
    """Raise ValueError where the columns are not those of a hash that can be computed from them.

    The hash of a pack covers what it was packed from, and that of pixels covers all of them.
    """
    if about.kind == "files":
        assert isinstance(index.store, FileStore)
        sides = index.heights_N, index.widths_N
        again = index_files(index.store.root, index.store.names, length_N, *sides)
    elif about.kind == "encoded" and not any(
        Path(name).name in PACKED_FILES for name in about.files or ()
    ):
        assert isinstance(index.store, ArchiveStore)
        again = index_archive(index.store, index.heights_N)
    else:
        return
    is_plain = re.fullmatch("[0-9a-f]{16}", about.content_hash)
    if is_plain and again.content_hash != about.content_hash:
        raise ValueError(f"its columns are not as they were written; {AGAIN}")
