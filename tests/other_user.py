"""Become a user who owns nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Let everybody look into a folder of a test, and be nobody within; who is not root stays."""
    for parent in [folder, *folder.parents]:
        if parent == Path(tempfile.gettempdir()):
            break
        parent.chmod(0o755)
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
