"""Read the bytes of images for DALI from files, archives or memory.

All images are read here, by plain reads and preads from any number of threads. No file is mapped
into memory, so a file that shrinks while a job runs raises an error that names it, instead of a bus
error. DALI gets exactly the bytes that have been checked (encoded_images.make_decodable).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from and_dist.data.image_headers import MAX_PIXELS, most_bytes
from and_dist.utils.plain_files import Piece, open_regular, read_regular, too_long

U8 = NDArray[np.uint8]
Kind = Literal["encoded", "pixels"]
"""The form of stored images: encoded bytes, or decoded pixels."""
MOST_IMAGE_BYTES = most_bytes(MAX_PIXELS, 1)
"""The most bytes of the file of any image."""


class Box(NamedTuple):
    """Hold a rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Names:
    """Hold millions of file names as one block of bytes and the end of each."""

    def __init__(self, text: U8, ends: NDArray[np.int64]) -> None:
        """Keep the block of bytes and where in it each name ends."""
        self.text = text
        self.ends = ends

    @classmethod
    def of(cls, names: Sequence[str]) -> Names:
        """Return the given names as one block."""
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self.ends)

    def part(self, start: int, stop: int) -> Names:
        """Return the names [start, stop) as a block of their own."""
        first = int(self.ends[start - 1]) if start else 0
        ends = self.ends[start:stop]
        return Names(self.text[first : int(ends[-1]) if len(ends) else first], ends - first)

    def select(self, rows: NDArray[np.int64]) -> Names:
        """Return the names of some rows as a block of their own."""
        # Adjacent names are adjacent bytes, so they need no decoding.
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and (np.diff(rows) == 1).all():
            return self.part(int(rows[0]), int(rows[-1]) + 1)
        return Names.of([self[row] for row in rows.tolist()])

    def __iter__(self) -> Iterator[str]:
        """Yield every name in turn."""
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> str:
        """Return the name of one row."""
        start = int(self.ends[row - 1]) if row else 0
        return os.fsdecode(self.text[start : int(self.ends[row])].tobytes())


@dataclass(frozen=True)
class FileStore:
    """Read encoded images that are files of their own below a folder."""

    root: Path
    names: Names
    kind: Kind = "encoded"

    def read(self, row: int, at_most: int = MOST_IMAGE_BYTES) -> bytes:
        """Return the encoded bytes of one image; raise OSError for more than `at_most`."""
        return read_regular(self.name(row), at_most)

    def select(self, rows: NDArray[np.int64]) -> FileStore:
        """Return a store of some rows alone."""
        return replace(self, names=self.names.select(rows))

    def name(self, row: int) -> str:
        """Return the path of an image, which messages name it by."""
        return os.path.join(self.root, self.names[row])

    @property
    def beginnings(self) -> tuple[str, ...]:
        """Return the strings that the name of any image begins with."""
        return (os.path.join(self.root, ""),)


class FileReader:
    """Read pieces of a few large files, which are opened when they are first needed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Keep the paths; open nothing."""
        self._paths = paths
        self._opened: dict[int, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def read(self, file: int, offset: int, length: int) -> bytes:
        """Return `length` bytes of a file from `offset` on.

        Any number of threads may call this. Raise OSError if the file ends before.
        """
        descriptor, end = self._open(file)
        if not 0 <= offset <= offset + length <= end:
            raise OSError(errno.EIO, f"{self._paths[file]} ends before byte {offset + length}")
        found = os.pread(descriptor, length, offset)
        if len(found) < length:
            raise OSError(errno.EIO, f"{self._paths[file]} ends before byte {offset + length}")
        return found

    def piece(self, file: int, offset: int, length: int) -> Piece:
        """Return `length` bytes of a file from `offset` on, to be read as far as needed."""
        descriptor, _ = self._open(file)
        return Piece(descriptor, offset, length)

    def _open(self, file: int) -> tuple[int, int]:
        """Return (descriptor, number of bytes) of a file, which is opened when it is first used."""
        opened = self._opened.get(file)
        if opened is None:
            # Looked up again under the lock: another thread may have opened the file meanwhile.
            with self._lock:
                opened = self._opened.get(file)
                if opened is None:
                    opened = self._opened[file] = open_regular(self._paths[file])
        return opened

    def __del__(self) -> None:
        """Close all files."""
        for descriptor, _ in self._opened.values():
            os.close(descriptor)


@dataclass(frozen=True)
class ArchiveStore:
    """Read encoded images, or raw pixels [H, W, 3], that lie in large files."""

    files: tuple[Path, ...]
    file_N: NDArray[np.int32]
    offset_N: NDArray[np.int64]
    length_N: NDArray[np.int64]
    widths_N: NDArray[np.int32]
    kind: Kind = "encoded"
    _reader: FileReader = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Create the reader of the files."""
        object.__setattr__(self, "_reader", FileReader(self.files))

    def __reduce__(self) -> tuple[type[ArchiveStore], tuple[object, ...]]:
        """Pickle the columns alone: locks and open files cannot be sent to another process."""
        columns = self.file_N, self.offset_N, self.length_N, self.widths_N
        return ArchiveStore, (self.files, *columns, self.kind)

    def read(self, row: int, at_most: int = MOST_IMAGE_BYTES) -> bytes:
        """Return the encoded bytes of one image; raise OSError for more than `at_most`."""
        file, offset = int(self.file_N[row]), int(self.offset_N[row])
        length = int(self.length_N[row])
        if length > at_most:
            raise too_long(length, at_most, self.files[file])
        return self._reader.read(file, offset, length)

    def fetch(self, row: int, box: Box) -> U8:
        """Return the pixels [height, width, 3] of one image within a box."""
        assert self.kind == "pixels"
        file, offset = int(self.file_N[row]), int(self.offset_N[row])
        line = 3 * int(self.widths_N[row])
        lines = self._reader.read(file, offset + box.top * line, box.height * line)
        # Whole lines are read, because one pread takes only adjacent bytes.
        pixels = np.frombuffer(lines, dtype=np.uint8).reshape(box.height, -1, 3)
        return np.ascontiguousarray(pixels[:, box.left : box.left + box.width])

    def name(self, row: int) -> str:
        """Return the file and offset of an image, which messages name it by."""
        return f"{self.files[int(self.file_N[row])]} at byte {int(self.offset_N[row])}"

    @property
    def beginnings(self) -> tuple[str, ...]:
        """Return the strings that the name of any image begins with."""
        return tuple(f"{file} at byte " for file in self.files)

    def select(self, rows: NDArray[np.int64]) -> ArchiveStore:
        """Return a store of some rows alone."""
        places = self.file_N[rows], self.offset_N[rows], self.length_N[rows]
        return ArchiveStore(self.files, *places, self.widths_N[rows], self.kind)


@dataclass(frozen=True)
class MemoryStore:
    """Hold pixels [H, W, 3] of any sizes in one block of memory, shared or not."""

    block: U8
    offset_N: NDArray[np.int64]
    heights_N: NDArray[np.int32]
    widths_N: NDArray[np.int32]
    label: str = "memory"
    """Name of the block in messages."""
    kind: Kind = "pixels"

    def fetch(self, row: int, box: Box) -> U8:
        """Return the pixels [height, width, 3] of one image within a box."""
        top, left, height, width = box
        return np.ascontiguousarray(self.pixels(row)[top : top + height, left : left + width])

    def pixels(self, row: int) -> U8:
        """Return all pixels [H, W, 3] of one image, as a view of the block."""
        height, width, start = self.heights_N[row], self.widths_N[row], self.offset_N[row]
        return self.block[start : start + 3 * int(height) * int(width)].reshape(height, width, 3)

    def name(self, row: int) -> str:
        """Return the row and label of an image, which messages name it by."""
        return f"row {row} of {self.label}"

    @property
    def beginnings(self) -> tuple[str, ...]:
        """Return the string that the name of any image begins with."""
        return ("row ",)

    def select(self, rows: NDArray[np.int64]) -> MemoryStore:
        """Return a store of some rows alone."""
        columns = (self.offset_N[rows], self.heights_N[rows], self.widths_N[rows])
        return MemoryStore(self.block, *columns, self.label)


Store = FileStore | ArchiveStore | MemoryStore
"""Any store of images by row. `read(row, at_most)` returns encoded bytes, or `fetch(row, box)` the
pixels in a box; `name(row)` names an image in messages and `beginnings` are the beginnings of all
such names; `select(rows)` returns a store of some rows."""
