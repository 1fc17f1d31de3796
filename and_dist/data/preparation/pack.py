"""Rewrite many images into a few large files, in parallel; an interrupted pack is resumed.

The rows are cut into parts of about PART_BYTES, whatever the number of workers. One process writes
a part under a temporary name and renames it when it is complete, with its columns beside it. A part
whose columns exist and belong to the same rows and options is not written again. All parts lie in a
folder that is named by the pack's hash (`fingerprint_of`), and that becomes the folder of the
manifest once it is complete.

N all rows of the source, X rows of it that are packed.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from and_dist.data.index import ImageIndex, hash_columns, index_archive
from and_dist.data.processes import open_processes
from and_dist.data.stores import ArchiveStore, FileStore, Kind
from and_dist.data.transcode import PackOptions, transform
from and_dist.utils.owned_files import NewFile, always, open_new

SHARD_BYTES = 2**30
"""The most bytes of one file of a pack."""
PART_BYTES = 2**28
"""The expected bytes of one part."""
TAR_BLOCK = 512
"""The bytes of a tar's header, and the unit that its contents are padded to."""
JPEG_BYTES_PER_PIXEL = 0.5
"""A rough size of re-encoded JPEGs, by which rows are cut into parts."""

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Packed:
    """Hold a pack, the source rows that are in it, and {row: reason} of the others."""

    index: ImageIndex
    rows: I64
    reasons: dict[int, str]


class Part(NamedTuple):
    """Describe one task: rows of a source for one file, or several if they turn out too large."""

    folder: Path
    number: int
    rows: I64
    store: FileStore | ArchiveStore
    options: PackOptions
    fingerprint: str
    largest: int
    """The most bytes of a file."""

    @property
    def columns_file(self) -> Path:
        """Return the path of the part's columns."""
        return self.folder / f"{self.number:05}.npz"


def plan_pack(
    index: ImageIndex, rows: I64, length_N: I64, folder: Path, options: PackOptions
) -> list[Part]:
    """Cut the given rows of an index of encoded images into parts, without writing anything."""
    assert isinstance(index.store, FileStore | ArchiveStore)
    sizes_X = _expected_bytes(index, rows, length_N, options)
    part_X = np.cumsum(sizes_X) // PART_BYTES
    starts = np.flatnonzero(np.diff(part_X, prepend=-1))
    parts = []
    for number, part_rows in enumerate(np.split(rows, starts[1:])):
        sides = index.heights_N[part_rows], index.widths_N[part_rows]
        store = index.store.select(part_rows)
        words = np.frombuffer(f"{options!r} {index.content_hash}".encode(), np.uint8)
        fingerprint = hash_columns(part_rows, length_N[part_rows], *sides, words, _times(store))
        parts.append(Part(folder, number, part_rows, store, options, fingerprint, SHARD_BYTES))
    return parts


def fingerprint_of(parts: Sequence[Part]) -> str:
    """Return a hash of the rows, options, images and modification times of a pack."""
    return hash_columns(*(np.frombuffer(part.fingerprint.encode(), np.uint8) for part in parts))


def write_pack(
    parts: Sequence[Part], source_hash: str, workers: int, progress: Callable[[int], None]
) -> Packed:
    """Rewrite the images of all parts into their folder, which exists and is ours.

    `progress` is told the images of each part that is done.
    """
    with open_processes(max(1, workers)) as executor:
        for number, _ in enumerate(executor.map(write_part, parts)):
            progress(len(parts[number].rows))
    return _assemble(parts, source_hash)


def _times(store: FileStore | ArchiveStore) -> I64:
    """Return when the files behind a store were last written: changed files make other parts."""
    if isinstance(store, FileStore):
        paths = [store.name(row) for row in range(len(store.names))]
    else:
        paths = [str(path) for path in store.files]
    return np.array([os.stat(path).st_mtime_ns for path in paths], np.int64)


def _expected_bytes(
    index: ImageIndex, rows: I64, length_N: I64, options: PackOptions
) -> NDArray[np.float64]:
    """Return about how many bytes [X] each row takes in the pack."""
    if options.side is None:
        return (length_N[rows] + 2 * TAR_BLOCK).astype(np.float64)
    sides_X2 = np.stack([index.heights_N[rows], index.widths_N[rows]], axis=1).astype(np.float64)
    factor_X1 = np.minimum(1, options.side / sides_X2.min(axis=1, keepdims=True))
    pixels_X = np.rint(sides_X2 * factor_X1).prod(axis=1)
    return np.asarray(pixels_X * (3 if options.raw else JPEG_BYTES_PER_PIXEL))


def write_part(part: Part) -> None:
    """Write all images of a part and its columns, unless an earlier run has written them."""
    if _read_columns(part) is not None:
        return
    places, kept, bad_rows, reasons = [], [], [], []
    with PartWriter(part) as writer:
        for at, row in enumerate(part.rows.tolist()):
            try:
                content, height, width, suffix = transform(part.store.read(at), part.options)
            except Exception as error:  # a decoder may raise anything at a broken file
                bad_rows.append(row)
                reasons.append(f"{type(error).__name__}: {error}")
                continue
            places.append((*writer.add(content, f"{row:09}{suffix}"), len(content), height, width))
            kept.append(row)
    table = np.array(places, np.int64).reshape(-1, 5)
    with open_new(part.columns_file, always) as file:
        np.savez(
            file,
            table=table,
            rows=np.array(kept, np.int64),
            files=writer.files,
            bad_rows=np.array(bad_rows, np.int64),
            reasons=np.array(reasons, np.str_),
            fingerprint=part.fingerprint,
        )


class PartWriter:
    """Append images to a tar or a block of pixels, and start another before it grows too large."""

    def __init__(self, part: Part) -> None:
        """Prepare to write a part; files are created when the first image comes."""
        self.files: list[str] = []
        self._part = part
        self._suffix = ".bin" if part.options.raw else ".tar"
        self._new: NewFile | None = None
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> PartWriter:
        """Return the writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Publish the last file, or discard it if the block failed."""
        if kind is None:
            self._close()
        elif self._new is not None:
            self._new.discard()

    def add(self, content: bytes, name: str) -> tuple[int, int]:
        """Write one image and return (file of this part, offset in it)."""
        if self._new is None or self._size_with(content) > self._part.largest:
            self._begin()
        assert self._new is not None
        if self._tar is None:
            offset = self._new.file.tell()
            self._new.file.write(content)
        else:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            offset = self._tar.offset + TAR_BLOCK
            self._tar.addfile(info, io.BytesIO(content))
        return len(self.files) - 1, offset

    def _close(self) -> None:
        """Complete the current file and publish it under its name."""
        if self._new is None:
            return
        if self._tar is not None:
            self._tar.close()
        self._new.publish()
        self._new = None

    def _size_with(self, content: bytes) -> int:
        """Return the size of the file if it is closed after one more image."""
        assert self._new is not None
        if self._tar is None:
            return self._new.file.tell() + len(content)
        # One block for the header, up to one of padding, two of zeros at the end; a closed tar is
        # padded with zeros to a whole record.
        end = self._tar.offset + len(content) + 4 * TAR_BLOCK
        return -(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE

    def _begin(self) -> None:
        """Publish the current file and start the next."""
        self._close()
        number = f"{self._part.number:05}" + (f"-{len(self.files)}" if self.files else "")
        self.files.append(number + self._suffix)
        self._new = NewFile(self._part.folder / self.files[-1], always)
        if not self._part.options.raw:
            self._tar = tarfile.TarFile(
                fileobj=self._new.file, mode="w", format=tarfile.USTAR_FORMAT
            )


def _read_columns(part: Part) -> dict[str, NDArray[Any]] | None:
    """Return the columns of a complete part; None if it is absent or belongs to another pack."""
    if not part.columns_file.exists():
        return None
    with np.load(part.columns_file) as stored:
        columns = dict(stored)
    is_whole = all((part.folder / str(name)).exists() for name in columns["files"])
    return columns if is_whole and str(columns["fingerprint"]) == part.fingerprint else None


def _assemble(parts: Sequence[Part], source_hash: str) -> Packed:
    """Join the columns of all parts into one index and the list of bad images."""
    files: list[Path] = []
    tables, rows = [], []
    reasons: dict[int, str] = {}
    for part in parts:
        columns = _read_columns(part)
        assert columns is not None
        table = columns["table"].copy()
        table[:, 0] += len(files)
        files += [part.folder.absolute() / str(name) for name in columns["files"]]
        tables.append(table)
        rows.append(columns["rows"])
        reasons |= dict(zip(columns["bad_rows"].tolist(), columns["reasons"].tolist(), strict=True))
    file, offset, length, height, width = np.concatenate(tables).T
    kind: Kind = "pixels" if parts[0].options.raw is not None else "encoded"
    places = file.astype(np.int32), offset.copy(), length.copy()
    store = ArchiveStore(tuple(files), *places, width.astype(np.int32), kind)
    index = index_archive(store, height.astype(np.int32))
    # The index hash covers sizes and places, which are equal for all raw pixels of one size: the
    # hash of the source is added.
    words = np.frombuffer(f"{source_hash} {index.content_hash}".encode(), np.uint8)
    index = replace(index, content_hash=hash_columns(words))
    return Packed(index, np.concatenate(rows), reasons)
