"""Read files of a folder that somebody else may have made. No torch.

A link there could name any file of the reader's, and reading a device or a pipe may never end. So
only regular files are opened, and links are not followed.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

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


def read_plain(path: Path, errors: str = "strict") -> str:
    """Return the text of a regular file; raise OSError or ValueError where there is none."""
    return read_at_most(path, MOST_BYTES).decode("utf-8", errors)


def read_at_most(path: Path, most_bytes: int, may_be_link: bool = False) -> bytes:
    """Return the content of a regular file, or of a link to one where it may be a link.

    Raise OSError for anything else, and for a file that is larger.
    """
    blocks, left = list[bytes](), most_bytes + 1
    with os.fdopen(open_regular(path)[0], "rb") if may_be_link else open_plain(path) as file:
        # os.read() raises OSError where a file of /proc has nothing to read yet; read() would not.
        while left and (block := os.read(file.fileno(), min(left, BLOCK_BYTES))):
            blocks.append(block)
            left -= len(block)
    if not left:
        raise OSError(errno.EFBIG, f"it has more than {most_bytes / 1e6:g} MB", str(path))
    return b"".join(blocks)


def _not_plain(path: Path) -> NotPlainError:
    why = "it is no regular file, and links are not followed there"
    return NotPlainError(errno.EINVAL, why, str(path))
