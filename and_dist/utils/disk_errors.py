"""Say what a disk refuses: which path, why, how much it takes and how much room is left. No torch.

All that writes goes through `naming_disk`, so that an error of a full disk, an exhausted quota, a
read-only or a broken disk has one form, wherever it comes from.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from and_dist.utils.formatting import in_bytes

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""The errors of a full disk and of an exhausted quota."""
OF_DISKS = (*NO_ROOM, errno.EROFS, errno.EIO)
"""The errors that say nothing against what was asked for, and may be gone at the next try."""
BUILDING = re.compile(r"^\.(.+)\.[0-9a-f]{16}\.building$")
"""The name of a folder while it is built, which says to users less than its own."""


class DiskError(OSError):
    """Says that a disk is full, over its quota, read-only or broken, and which path this is about.

    The same command goes on once the disk is mended.
    """


@contextmanager
def naming_disk(path: Path, needed: int | None = None) -> Iterator[None]:
    """Enclose the writing of a path: an error of its disk becomes a DiskError that says where.

    `needed` is how many bytes the file takes, where that is known.
    """
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        number = errno_of(error)
        if number is None:
            raise
        raise DiskError(describe(path, number, needed)) from error


def errno_of(error: Exception) -> int | None:
    """Return which error of a disk an exception is, None for any other.

    Libraries outside Python put the words of the system into messages of their own.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in OF_DISKS else None
    return next((number for number in OF_DISKS if os.strerror(number) in str(error)), None)


def describe(path: Path, number: int, needed: int | None = None) -> str:
    """Return the sentence about a path that cannot be written."""
    known = Path(*(BUILDING.sub(r"\1", part) for part in path.parts))
    sentence = f"{known} cannot be written: {os.strerror(number)}"
    if number not in NO_ROOM:
        return sentence
    takes = "" if needed is None else f"it takes {in_bytes(needed)}, and "
    left = room_left(path)
    return sentence + ("" if left is None else f"; {takes}its disk has {in_bytes(left)} left")


def room_left(path: Path) -> int | None:
    """Return how many bytes this user may still write on a path's disk; None if that is unknown."""
    there = path.absolute()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    try:
        about = os.statvfs(there)
    except OSError:
        return None
    return about.f_bavail * about.f_frsize
