"""Commands on real file systems that have no room or may not be written: root alone can mount them.

The file system gets room again, or may be written again, before the command is run again.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.attack.disks.commands import Scene, run
from tests.attack.disks.judge import (
    LEFT,
    judge_end,
    judge_second_run,
    left_unfinished,
)

PLENTY = "size=256m,nr_inodes=100000"
PAGE = 4096


@cache
def can_mount() -> bool:
    """Return whether this process may mount a file system."""
    with TemporaryDirectory() as name:
        command = ["mount", "-t", "tmpfs", "none", name]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return False
        subprocess.run(["umount", name], check=True)
    return True


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """Mount a file system of plenty of room on FOLDER/scene."""
    place = folder / "scene"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", PLENTY, "none", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def remount(place: Path, options: str) -> None:
    """Change the options of a mounted file system."""
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


def try_small(scene: Scene, pages: int, names: int, folder: Path) -> str:
    """Run a command where there is room for so many pages, or names, then with more room.

    Neither is given for a disk that has no room for either.
    """
    with mounted(folder) as place:
        scene.lay(place)
        about = os.statvfs(place)
        limits = []
        if pages or not names:
            used = (about.f_blocks - about.f_bfree) * about.f_frsize
            limits.append(f"size={used + max(1, pages) * PAGE}")
        if names or not pages:
            limits.append(f"nr_inodes={about.f_files - about.f_ffree + names}")
        remount(place, ",".join(limits))
        first = run(scene, place)
        broke = judge_end(scene, first, errno.ENOSPC)
        if first.status != 0 and not LEFT.search(first.said):
            broke = broke or f"it does not say how much room is left: {first.said[-500:]}"
        if not scene.is_training:
            broke = broke or left_unfinished(place)
        remount(place, PLENTY)
        return broke or judge_second_run(scene, place, may_refuse=first.status == 0)


def try_read_only(scene: Scene, folder: Path) -> str:
    """Run a command where nothing may be written, then where it may."""
    with mounted(folder) as place:
        scene.lay(place)
        remount(place, "ro")
        first = run(scene, place)
        broke = judge_end(scene, first, errno.EROFS)
        if first.status == 0 or "read-only" not in first.said.lower():
            broke = broke or f"it does not say that the disk is read-only: {first.said[-500:]}"
        remount(place, "rw")
        return broke or judge_second_run(scene, place)
