"""Read files that somebody else may have made: of a run folder, and sources of images. No torch.

Reading a device or a pipe may never end, so only regular files are opened, and opening waits for
nothing. A file may also state a length that nobody has memory for: whoever reads one says how many
bytes its format can hold. A link in a run folder could name any file of the reader's, so open_plain
and read_plain do not follow links; sources of images may be links.
"""

from __future__ import annotations

import errno
import os
import stat
from io import SEEK_CUR, SEEK_END, BufferedReader, RawIOBase
from pathlib import Path
from typing import Any

MOST_BYTES = 100_000_000
"""The size from which on a file is refused that is read as a whole: ours have some kilobytes."""
BLOCK_BYTES = 1_000_000


class NotPlainError(OSError):
    """Says that a path is no regular file of the folder itself."""


def open_plain(path: Path) -> BufferedReader:
    """Open a regular file for reading; raise NotPlainError for a link, a device or a pipe."""
    try:
        # Opening a pipe without O_NONBLOCK waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
            raise _not_plain(path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_plain(path)
    return os.fdopen(descriptor, "rb")


def open_regular(path: str | Path) -> tuple[int, int]:
    """Open a regular file, or a link to one; return (descriptor, number of bytes).

    Raise OSError for anything else: a pipe or a device may have no end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        os.close(descriptor)
        raise NotPlainError(errno.EINVAL, "no regular file", str(path))
    return descriptor, about.st_size


def check_regular(path: str | Path) -> int:
    """Return the number of bytes of a regular file, which a library then opens by its name.

    Raise OSError for anything else.
    """
    descriptor, length = open_regular(path)
    os.close(descriptor)
    return length


def read_regular(path: str | Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file, or of one that a link names.

    Raise OSError for anything else, and for a file of more than `most_bytes`.
    """
    return read_at_most(Path(path), most_bytes, may_be_link=True)


class Piece(RawIOBase):
    """Reads a piece of an open file where it lies, as a file of its own.

    Any number of pieces may share a descriptor, which stays open when they are closed.
    """

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        """Keep where the piece lies; read nothing."""
        self.length = length
        self._descriptor = descriptor
        self._offset = offset
        self._at = 0

    def read_at(self, at: int, count: int) -> bytes:
        """Return up to `count` bytes from byte `at` of the piece on."""
        count = max(0, min(count, self.length - at))
        return os.pread(self._descriptor, count, self._offset + at)

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, and return the number of bytes read."""
        found = self.read_at(self._at, len(buffer))
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def seek(self, at: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte, and return its number."""
        base = {SEEK_CUR: self._at, SEEK_END: self.length}.get(whence, 0)
        if base + at < 0:
            raise OSError(errno.EINVAL, "it asks for a byte before the first one")
        self._at = base + at
        return self._at

    def seekable(self) -> bool:
        """Return that any byte may be read next."""
        return True

    def readable(self) -> bool:
        """Return that this is read."""
        return True


def read_plain(path: Path, errors: str = "strict") -> str:
    """Return the text of a regular file; raise OSError or ValueError where there is none."""
    return read_at_most(path, MOST_BYTES).decode("utf-8", errors)


def read_at_most(path: Path, most_bytes: int, may_be_link: bool = False) -> bytes:
    """Return the content of a regular file, or of a link to one where it may be a link.

    Raise OSError for anything else, and for a file that is larger.
    """
    blocks, left = list[bytes](), most_bytes + 1
    with os.fdopen(open_regular(path)[0], "rb") if may_be_link else open_plain(path) as file:
        # Most files are one block, which is not copied again. Those of /proc state no length.
        at_once = max(BLOCK_BYTES, os.fstat(file.fileno()).st_size)
        # os.read() raises OSError where a file of /proc has nothing to read yet; read() would not.
        while left and (block := os.read(file.fileno(), min(left, at_once))):
            blocks.append(block)
            left -= len(block)
    if not left:
        raise OSError(errno.EFBIG, f"it has more than {most_bytes / 1e6:g} MB", str(path))
    return b"".join(blocks)


def too_long(length: int, most_bytes: int, path: str | Path) -> OSError:
    """Return the error about a file with more bytes than its format can hold."""
    why = f"it has {length:,} bytes, and at most {most_bytes:,} can belong to it"
    return OSError(errno.EFBIG, why, str(path))


def _not_plain(path: Path) -> NotPlainError:
    why = "it is no regular file, and links are not followed there"
    return NotPlainError(errno.EINVAL, why, str(path))
