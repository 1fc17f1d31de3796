"""Packs: many images rewritten into a few large files, in parallel, resumable after a kill.

The rows are cut into parts of about PART_BYTES, whoever and however many write them. A part is
written by one process under another name and renamed when it is whole, its columns beside it; a
part whose columns are there and belong to the same rows and options is not written again. All of
this lies in a folder that is named by what is packed (`fingerprint_of`), and becomes the folder of
the manifest once it is whole.
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
from PIL import Image

from and_dist.data.image_headers import check_white, upright, upright_size
from and_dist.data.index import ImageIndex, hash_columns, index_archive
from and_dist.data.processes import open_processes
from and_dist.data.stores import ArchiveStore, FileStore, Kind
from and_dist.utils.owned_files import NewFile, always, open_new

SHARD_BYTES = 2**30
PART_BYTES = 2**28
TAR_BLOCK = 512
JPEG_BYTES_PER_PIXEL = 0.5
JPEG_QUALITY = 90
SUFFIX_OF = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class PackOptions:
    """What becomes of the images; the defaults keep them where they are."""

    pack: bool = False
    """Tars of at most 1 GiB: the images' own bytes, unless `resize` is given."""
    resize: int | None = None
    """Re-encode as JPEG, the shorter side cut down to this."""
    quality: int | None = None
    """JPEG quality of `resize`; None is JPEG_QUALITY."""
    raw: int | None = None
    """Blocks of uint8 pixels, the shorter side cut down to this."""

    def __post_init__(self) -> None:
        if self.raw is not None and (self.pack or self.resize is not None):
            raise ValueError("--raw stores pixels, --pack and --resize store JPEGs: choose one")
        if self.resize is not None and not self.pack:
            raise ValueError("--resize needs --pack, which writes what it resizes")
        if self.quality is not None and self.resize is None:
            raise ValueError("--quality needs --resize, which encodes what it resizes")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ValueError(f"--quality {self.quality} is not one of 1..100")
        if any(side is not None and side < 1 for side in (self.raw, self.resize)):
            raise ValueError("--raw and --resize take a number of pixels above 0")

    @property
    def rewrites(self) -> bool:
        return self.pack or self.raw is not None

    @property
    def side(self) -> int | None:
        return self.raw or self.resize

    def refuse_for_pixels(self, source: object) -> None:
        """ValueError if anything is asked for of a source that comes as pixels."""
        if self != PackOptions():
            raise ValueError(
                f"{source} comes as pixels and is stored as it is, with nothing left to decode: "
                "leave out --pack, --resize, --quality and --raw"
            )


@dataclass(frozen=True)
class Packed:
    """A pack, the source rows that are in it, and why the others are not."""

    index: ImageIndex
    rows: I64
    reasons: dict[int, str]


class Part(NamedTuple):
    """One task: rows of a source that go into one file, or several if they turn out too large."""

    folder: Path
    number: int
    rows: I64
    store: FileStore | ArchiveStore
    options: PackOptions
    fingerprint: str
    largest: int
    """Bytes of a file."""

    @property
    def columns_file(self) -> Path:
        return self.folder / f"{self.number:05}.npz"


def target_size(height: int, width: int, side: int | None) -> tuple[int, int]:
    """Sides after the shorter one is cut down to `side`; images are never made larger."""
    shorter = min(height, width)
    if side is None or shorter <= side:
        return height, width
    return max(1, round(height * side / shorter)), max(1, round(width * side / shorter))


def plan_pack(
    index: ImageIndex, rows: I64, length_N: I64, folder: Path, options: PackOptions
) -> list[Part]:
    """Cut these rows of an index of encoded images into parts; nothing is written."""
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
    """Return what tells a pack from every other: of other rows, options, images or times."""
    return hash_columns(*(np.frombuffer(part.fingerprint.encode(), np.uint8) for part in parts))


def write_pack(
    parts: Sequence[Part], source_hash: str, workers: int, progress: Callable[[int], None]
) -> Packed:
    """Rewrite the images of all parts into their folder, which is there and is ours."""
    with open_processes(max(1, workers)) as executor:
        for number, _ in enumerate(executor.map(write_part, parts)):
            progress(len(parts[number].rows))
    return _assemble(parts, source_hash)


def _times(store: FileStore | ArchiveStore) -> I64:
    """When the files behind a store were last written: other files are other parts."""
    if isinstance(store, FileStore):
        paths = [store.name(row) for row in range(len(store.names))]
    else:
        paths = [str(path) for path in store.files]
    return np.array([os.stat(path).st_mtime_ns for path in paths], np.int64)


def _expected_bytes(
    index: ImageIndex, rows: I64, length_N: I64, options: PackOptions
) -> NDArray[np.float64]:
    if options.side is None:
        return (length_N[rows] + 2 * TAR_BLOCK).astype(np.float64)
    sides_X2 = np.stack([index.heights_N[rows], index.widths_N[rows]], axis=1).astype(np.float64)
    factor_X1 = np.minimum(1, options.side / sides_X2.min(axis=1, keepdims=True))
    pixels_X = np.rint(sides_X2 * factor_X1).prod(axis=1)
    return np.asarray(pixels_X * (3 if options.raw else JPEG_BYTES_PER_PIXEL))


def write_part(part: Part) -> None:
    """All images of a part, unless an earlier run wrote them."""
    if _read_columns(part) is not None:
        return
    places, kept, bad_rows, reasons = [], [], [], []
    with PartWriter(part) as writer:
        for at, row in enumerate(part.rows.tolist()):
            try:
                content, height, width, suffix = transform(part.store.read(at), part.options)
            except Exception as error:  # whatever a decoder throws at a broken file names that file
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
    """Appends to a tar or a block of pixels, beginning another before it grows too large."""

    def __init__(self, part: Part) -> None:
        self.files: list[str] = []
        self._part = part
        self._suffix = ".bin" if part.options.raw else ".tar"
        self._new: NewFile | None = None
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._close()
        elif self._new is not None:
            self._new.discard()

    def add(self, content: bytes, name: str) -> tuple[int, int]:
        """(file of this part, offset) of what was written."""
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
        if self._new is None:
            return
        if self._tar is not None:
            self._tar.close()
        self._new.publish()
        self._new = None

    def _size_with(self, content: bytes) -> int:
        """Of the file, closed after one image more: a tar ends in zeros up to a whole record."""
        assert self._new is not None
        if self._tar is None:
            return self._new.file.tell() + len(content)
        end = self._tar.offset + len(content) + 4 * TAR_BLOCK
        return -(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE

    def _begin(self) -> None:
        self._close()
        number = f"{self._part.number:05}" + (f"-{len(self.files)}" if self.files else "")
        self.files.append(number + self._suffix)
        self._new = NewFile(self._part.folder / self.files[-1], always)
        if not self._part.options.raw:
            self._tar = tarfile.TarFile(
                fileobj=self._new.file, mode="w", format=tarfile.USTAR_FORMAT
            )


def transform(encoded: bytes, options: PackOptions) -> tuple[bytes, int, int, str]:
    """(bytes, height, width, file suffix) of one image in the pack."""
    with Image.open(io.BytesIO(encoded)) as image:
        kind = image.format or "JPEG"
        height, width = upright_size(image)
        target = target_size(height, width, options.side)
        if options.raw is None and (options.side is None or target == (height, width)):
            return encoded, height, width, SUFFIX_OF.get(kind, ".img")
        if kind == "JPEG":
            image.draft(
                "RGB",
                (2 * target[1], 2 * target[0])
                if height <= width
                else (2 * max(target), 2 * max(target)),
            )
        pixels = to_rgb(upright(image))
        if pixels.size != (target[1], target[0]):
            pixels = pixels.resize((target[1], target[0]), Image.Resampling.BICUBIC, reducing_gap=3)
    if options.raw is not None:
        return pixels.tobytes(), *target, ".rgb"
    encoder = io.BytesIO()
    pixels.save(encoder, "JPEG", quality=options.quality or JPEG_QUALITY)
    return encoder.getvalue(), *target, ".jpg"


def to_rgb(image: Image.Image) -> Image.Image:
    """8 bits a channel; Pillow would cut 16-bit gray off at 255 instead of scaling it."""
    check_white(image)
    if image.mode.startswith("I"):
        high_bytes = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return Image.fromarray(high_bytes).convert("RGB")
    return image.convert("RGB")


def _read_columns(part: Part) -> dict[str, NDArray[Any]] | None:
    """The columns of a part that is whole, None for one that is not there or another's."""
    if not part.columns_file.exists():
        return None
    with np.load(part.columns_file) as stored:
        columns = dict(stored)
    is_whole = all((part.folder / str(name)).exists() for name in columns["files"])
    return columns if is_whole and str(columns["fingerprint"]) == part.fingerprint else None


def _assemble(parts: Sequence[Part], source_hash: str) -> Packed:
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
    # Raw pixels of one size all look alike from outside; what they were made of tells them apart.
    words = np.frombuffer(f"{source_hash} {index.content_hash}".encode(), np.uint8)
    index = replace(index, content_hash=hash_columns(words))
    return Packed(index, np.concatenate(rows), reasons)
