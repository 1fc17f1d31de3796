"""Open tars that may state any size: pieces of a terabyte, or gigabytes in a small gzip file.

tarfile reads as many bytes for a name or a header as the tar says that it has, and skips a member
by reading all of it if the tar is compressed.
"""

from __future__ import annotations

import gzip
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from and_dist.utils.plain_files import Piece, open_regular

MOST_HEADER_BYTES = 2**24
"""The most bytes that are read at once: of a name, or of what a tar says about a member."""
GZIP_MAGIC = b"\x1f\x8b"


class Guarded:
    """Lets tarfile read a file, but no long piece at once, and nothing behind some byte."""

    def __init__(self, file: IO[bytes], end: float, most_at_once: int) -> None:
        """Guard an open file."""
        self._file = file
        self._end = end
        self._most_at_once = most_at_once

    def read(self, size: int) -> bytes:
        """Return some bytes; raise tarfile.ReadError for too many of them."""
        if not 0 <= size <= self._most_at_once:
            raise tarfile.ReadError(f"it states a piece of {size:,} bytes")
        return self._file.read(size)

    def seek(self, at: int) -> int:
        """Go to a byte; raise tarfile.ReadError where it lies too far."""
        if not 0 <= at <= self._end:
            raise tarfile.ReadError(f"it states {at:,} bytes")
        return self._file.seek(at)

    def tell(self) -> int:
        """Return where the next byte lies."""
        return self._file.tell()


@contextmanager
def open_tar(path: Path, start: int = 0) -> Iterator[tarfile.TarFile]:
    """Open the uncompressed tar that begins at byte `start` of a file, with offsets in that file.

    Raise OSError if the file is no regular one.
    """
    descriptor, length = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        file.seek(start)
        guarded = Guarded(file, length, MOST_HEADER_BYTES)
        with tarfile.open(fileobj=guarded, mode="r:") as archive:  # type: ignore[call-overload] # no IO
            yield archive


@contextmanager
def open_packed_tar(path: Path, most_bytes: int) -> Iterator[tarfile.TarFile]:
    """Open a tar that may be compressed by gzip, of which no more than `most_bytes` are unpacked.

    Raise OSError if the file is no regular one.
    """
    descriptor, length = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        is_packed = Piece(descriptor, 0, length).read_at(0, 2) == GZIP_MAGIC
        content: IO[bytes] = gzip.GzipFile(fileobj=file) if is_packed else file  # type: ignore[assignment] # no IO
        guarded = Guarded(content, most_bytes, most_bytes)
        with tarfile.open(fileobj=guarded, mode="r:") as archive:  # type: ignore[call-overload] # no IO
            yield archive


def members_of(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar.

    Raise tarfile.ReadError if one does not lie behind the one before, or not in one piece.
    """
    end = -1
    while (info := archive.next()) is not None:
        if info.size < 0 or info.offset_data <= end:
            raise tarfile.ReadError(f"{info.name!r} states {info.size} bytes")
        if info.issparse():
            raise tarfile.ReadError(f"{info.name!r} is stored as a sparse file")
        end = info.offset_data
        yield info
        # tarfile would keep an object for each of a million files.
        archive.members.clear()  # type: ignore[attr-defined] # typeshed lacks it
