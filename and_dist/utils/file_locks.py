"""Lock files by the kernel, so that other processes see whether their writer lives. No torch."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def lock_file(path: Path) -> int | None:
    """Lock a writer's file and return its descriptor; raise BlockingIOError if a writer holds it.

    Return None if that cannot be told, as on a file system without locks: then nothing may be
    removed.
    """
    try:
        # Opened for writing, because NFS locks no other files.
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor
