"""Where images lie, and how the bytes of one reach DALI.

All of them are read here, by plain reads and preads from any number of threads. Nothing is mapped,
so a file that shrinks under a running job is an error with a name and not a bus error; and what
DALI is given has been looked at (headers.check_decodable), byte for byte.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
Kind = Literal["encoded", "pixels"]


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Names:
    """Millions of file names as one block of bytes and where each ends."""

    def __init__(self, text: U8, ends: NDArray[np.int64]) -> None:
        self.text = text
        self.ends = ends

    @classmethod
    def of(cls, names: Sequence[str]) -> Names:
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def part(self, start: int, stop: int) -> Names:
        """Names [start, stop) on their own."""
        first = int(self.ends[start - 1]) if start else 0
        ends = self.ends[start:stop]
        return Names(self.text[first : int(ends[-1]) if len(ends) else first], ends - first)

    def select(self, rows: NDArray[np.int64]) -> Names:
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and (np.diff(rows) == 1).all():
            return self.part(int(rows[0]), int(rows[-1]) + 1)
        return Names.of([self[row] for row in rows.tolist()])

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> str:
        start = int(self.ends[row - 1]) if row else 0
        return os.fsdecode(self.text[start : int(self.ends[row])].tobytes())


@dataclass(frozen=True)
class FileStore:
    """Every image a file of its own below a folder."""

    root: Path
    names: Names
    kind: Kind = "encoded"

    def read(self, row: int) -> bytes:
        descriptor = os.open(self.name(row), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)

    def select(self, rows: NDArray[np.int64]) -> FileStore:
        return replace(self, names=self.names.select(rows))

    def name(self, row: int) -> str:
        return os.path.join(self.root, self.names[row])

    @property
    def beginnings(self) -> tuple[str, ...]:
        return (os.path.join(self.root, ""),)


class FileReader:
    """pread on a few large files, opened when first needed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()

    def read(self, file: int, offset: int, length: int) -> bytes:
        descriptor = self._descriptors.get(file)
        if descriptor is None:
            with self._lock:
                descriptor = self._descriptors.get(file)
                if descriptor is None:
                    descriptor = os.open(self._paths[file], os.O_RDONLY | os.O_CLOEXEC)
                    self._descriptors[file] = descriptor
        found = os.pread(descriptor, length, offset)
        if len(found) < length:
            raise OSError(f"{self._paths[file]} ends before byte {offset + length}")
        return found

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)


@dataclass(frozen=True)
class ArchiveStore:
    """Encoded images, or raw pixels [H, W, 3], at places of large files."""

    files: tuple[Path, ...]
    file_N: NDArray[np.int32]
    offset_N: NDArray[np.int64]
    length_N: NDArray[np.int64]
    widths_N: NDArray[np.int32]
    kind: Kind = "encoded"
    _reader: FileReader = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_reader", FileReader(self.files))

    def __reduce__(self) -> tuple[type[ArchiveStore], tuple[object, ...]]:
        columns = self.file_N, self.offset_N, self.length_N, self.widths_N
        return ArchiveStore, (self.files, *columns, self.kind)

    def read(self, row: int) -> bytes:
        file, offset = int(self.file_N[row]), int(self.offset_N[row])
        return self._reader.read(file, offset, int(self.length_N[row]))

    def fetch(self, row: int, box: Box) -> U8:
        assert self.kind == "pixels"
        file, offset = int(self.file_N[row]), int(self.offset_N[row])
        line = 3 * int(self.widths_N[row])
        lines = self._reader.read(file, offset + box.top * line, box.height * line)
        pixels = np.frombuffer(lines, dtype=np.uint8).reshape(box.height, -1, 3)
        return np.ascontiguousarray(pixels[:, box.left : box.left + box.width])

    def name(self, row: int) -> str:
        return f"{self.files[int(self.file_N[row])]} at byte {int(self.offset_N[row])}"

    @property
    def beginnings(self) -> tuple[str, ...]:
        return tuple(f"{file} at byte " for file in self.files)

    def select(self, rows: NDArray[np.int64]) -> ArchiveStore:
        places = self.file_N[rows], self.offset_N[rows], self.length_N[rows]
        return ArchiveStore(self.files, *places, self.widths_N[rows], self.kind)


@dataclass(frozen=True)
class MemoryStore:
    """Pixels [H, W, 3] of any sizes in one block of memory, shared or not."""

    block: U8
    offset_N: NDArray[np.int64]
    heights_N: NDArray[np.int32]
    widths_N: NDArray[np.int32]
    label: str = "memory"
    kind: Kind = "pixels"

    def fetch(self, row: int, box: Box) -> U8:
        top, left, height, width = box
        return np.ascontiguousarray(self.pixels(row)[top : top + height, left : left + width])

    def pixels(self, row: int) -> U8:
        height, width, start = self.heights_N[row], self.widths_N[row], self.offset_N[row]
        return self.block[start : start + 3 * int(height) * int(width)].reshape(height, width, 3)

    def name(self, row: int) -> str:
        return f"row {row} of {self.label}"

    @property
    def beginnings(self) -> tuple[str, ...]:
        return ("row ",)

    def select(self, rows: NDArray[np.int64]) -> MemoryStore:
        columns = (self.offset_N[rows], self.heights_N[rows], self.widths_N[rows])
        return MemoryStore(self.block, *columns, self.label)


Store = FileStore | ArchiveStore | MemoryStore
"""Images by row. read(row): the encoded bytes; fetch(row, box): of pixels, those in the box.
name(row): what to call the image in a message; beginnings: how all such names begin.
select(rows): some rows as a store of their own."""
