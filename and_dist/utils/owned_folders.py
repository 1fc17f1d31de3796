"""Build, replace and remove folders, and never one that holds a file of somebody else's. No torch.

The rule is that of owned_files: a folder is replaced or removed only if this program wrote
everything in it, which the caller tells by the names that it owns there.

A folder is built aside on the same file system. It then changes places with the folder that it
replaces, in one system call if the file system can do that and by two renames if it cannot; the old
folder is removed last. The builder holds a lock on a mark in the new folder, so that a process that
finds an unlocked mark knows that its builder is gone, and restores order.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from and_dist.utils.disk_errors import naming_disk
from and_dist.utils.file_locks import lock_file
from and_dist.utils.folder_names import (
    MARK,
    RESUMABLE,
    UNFINISHED,
    UNFINISHED_MARK,
    Either,
    OwnedNames,
    entries_of,
    find_foreign,
    is_bare,
    is_mark,
    names_being_built,
    read_mark,
)
from and_dist.utils.owned_files import (
    TOKEN,
    NotOursError,
    aside_name,
    clear_if_abandoned,
    kind_of,
    stem_of,
    write_file,
)


def check_folder(folder: Path, owned_names: OwnedNames, remedy: str) -> None:
    """Raise NotOursError unless a folder is absent or this program wrote everything in it."""
    kind = kind_of(folder)
    if kind not in ("folder", ""):
        raise NotOursError(f"{folder} is a {kind}, not a folder that and-dist wrote: {remedy}")
    if kind and (foreign := find_foreign(folder, owned_names)):
        raise NotOursError(f"folder {folder} was not written by and-dist, {foreign}: {remedy}")


TRIES = 20
"""The most names under which a folder is tried, while other processes take it for abandoned."""


class NewFolder:
    """Build a folder aside, which then takes its place or that of one of ours.

    `contents` are the names that may lie in it while it is built. Given a `fingerprint`, the folder
    is named by it, and the next build with the same fingerprint resumes it; without one, no other
    build uses it.
    """

    def __init__(
        self,
        target: Path,
        owned_names: OwnedNames,
        contents: Container[str],
        fingerprint: str | None = None,
        remedy: str = "move it away",
    ) -> None:
        """Create or resume the folder and lock it.

        Raise NotOursError if the target may not be replaced, and RuntimeError if another process
        builds it.
        """
        check_folder(target, owned_names, remedy)
        restore_folder(target, owned_names, contents)
        self.target, self._owned_names, self._contents = target, owned_names, contents
        self._remedy = remedy
        self._lock: int | None = None
        self._made: list[Path] = []
        with naming_disk(target):
            self._begin(fingerprint)

    def _begin(self, fingerprint: str | None) -> None:
        """Create or resume the folder; leave nothing behind if that fails."""
        try:
            _make_folders(self.target.parent, self._made)
            tokens = (fingerprint,) if fingerprint else map(secrets.token_hex, [8] * TRIES)
            if not any(self._take_and_lock(token, fingerprint is not None) for token in tokens):
                busy = f"{self.target} is being built by another process: wait for it or end it"
                raise RuntimeError(busy)
        except BaseException:
            _unmake(self._made)
            raise

    def publish(self) -> None:
        """Take the target's place. However this ends, the old folder or the new one is there.

        Raise NotOursError if something in either folder is not ours.
        """
        with naming_disk(self.target):
            self._publish()

    def _publish(self) -> None:
        """Take the target's place."""
        check_folder(self.target, self._owned_names, self._remedy)
        for name in os.listdir(self.path):
            if name in UNFINISHED:
                clear_if_abandoned(self.path / name)
        check_folder(self.path, lambda _: self._contents, self._remedy)
        flush_folder(self.path)
        if kind_of(self.target) == "":
            os.rename(self.path, self.target)
        else:
            # A kill may have left the mark of an earlier build, which would look unfinished aside.
            _remove_mark(self.target)
            old = aside_name(self.target, "replaced")
            _change_places(self.path, self.target, old)
            _remove_known(old, self._owned_names)
        flush_folder(self.target.parent)
        _remove_mark(self.target)
        self._unlock()
        restore_folder(self.target, self._owned_names, self._contents, keeps_resumable=False)

    def remove_from_target(self, names: Container[str]) -> None:
        """Remove published files that only the build needed."""
        for name in os.listdir(self.target):
            if name in names and name in self._contents:
                os.unlink(self.target / name)

    def discard(self) -> None:
        """Remove the unfinished folder and the parent folders that were made for it."""
        with suppress(OSError):
            _remove_known(self.path, lambda _: Either(self._contents, UNFINISHED))
        _unmake(self._made)
        self._unlock()

    def leave(self) -> None:
        """Unlock the unfinished folder and leave it for the same command to resume."""
        self._unlock()

    def _take_and_lock(self, token: str, is_resumable: bool) -> bool:
        """Make or resume the folder of a token; return False if another process has it, or has
        removed it as abandoned before it was locked."""
        self.path = self.target.with_name(f".{stem_of(self.target)}.{token}.building")
        try:
            self._take(token, RESUMABLE if is_resumable else "")
            self._lock = lock_file(self.path / MARK)
        except (BlockingIOError, FileNotFoundError):
            return False
        if not is_mark(self.path / MARK):
            self._unlock()
            return False
        return True

    def _take(self, token: str, resumable: str) -> None:
        """Make the folder or resume one that was left, and mark it."""
        try:
            os.mkdir(self.path)
        except FileExistsError:
            if foreign := find_foreign(self.path, names_being_built(token, self._contents)):
                raise NotOursError(
                    f"folder {self.path}, in which {self.target} was being built, is not as "
                    f"and-dist left it, {foreign}: move it away"
                ) from None
        for name in filter(UNFINISHED_MARK.__contains__, os.listdir(self.path)):
            # A kill between link and unlink leaves it as a second name of the mark's file.
            clear_if_abandoned(self.path / name)
        if not is_mark(self.path / MARK):
            try:
                write_file(self.path / MARK, token + resumable)
            except BaseException:
                with suppress(OSError):
                    os.rmdir(self.path)
                raise

    def _unlock(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def restore_folder(
    target: Path,
    owned_names: OwnedNames,
    contents: Container[str],
    keeps_resumable: bool = True,
) -> None:
    """Repair the folders of a process that was killed while it built or replaced one.

    The old folder comes back if there is no new one. An unfinished folder is removed; one that can
    be resumed only if `keeps_resumable` is false. A folder that holds a foreign file, or that a
    living process has locked, stays as it is.
    """
    pattern = re.compile(rf"\.{re.escape(stem_of(target))}\.({TOKEN})\.(?:building|replaced)")
    for name in os.listdir(target.parent) if target.parent.is_dir() else ():
        found, path = pattern.fullmatch(name), target.parent / name
        if found is None or kind_of(path) != "folder":
            continue
        with suppress(FileNotFoundError):  # another process finished or removed it meanwhile
            if is_mark(path / MARK) or is_bare(path):
                if not (keeps_resumable and read_mark(path / MARK).endswith(RESUMABLE)):
                    _remove_abandoned(path, names_being_built(found.group(1), contents))
            elif not find_foreign(path, owned_names):
                if kind_of(target) == "":
                    os.rename(path, target)
                else:
                    _remove_known(path, owned_names)


def remove_folder(folder: Path, owned_names: OwnedNames) -> bool:
    """Remove a folder if everything in it is ours; return whether it is removed.

    It is renamed first, so that a kill half-way leaves nothing that looks complete.
    """
    if kind_of(folder) != "folder" or find_foreign(folder, owned_names):
        return False
    aside = aside_name(folder, "replaced")
    with naming_disk(folder):
        os.rename(folder, aside)
        return _remove_known(aside, owned_names)


def move_folder(folder: Path, free_name: Path, owned_names: OwnedNames) -> bool:
    """Rename a folder if all of it is ours and the name is free; return whether it is done."""
    if kind_of(folder) != "folder" or kind_of(free_name) or find_foreign(folder, owned_names):
        return False
    try:
        os.rename(folder, free_name)
    except OSError:
        return False
    return True


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a folder among the system's temporary ones, which is removed after the block."""
    with tempfile.TemporaryDirectory(prefix="and-dist-") as name:
        yield Path(name)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a package's files to a path where nothing is yet."""
    with naming_disk(target):
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))


def remove_tree(folder: Path, owned_paths: Container[str]) -> None:
    """Remove the files below a folder that are ours by their path in it, and then empty folders.

    Links are not followed, and are removed if their names are ours. Everything else stays, and the
    folders that it lies in.
    """
    for base, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(base, name)
            is_ours = str(path.relative_to(folder)) in owned_paths
            if is_ours and kind_of(path) in ("file", "link"):  # submitit leaves a link of its own
                with suppress(OSError):
                    os.unlink(path)
        with suppress(OSError):  # files that are not ours are left in it
            os.rmdir(base)


def flush_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


flush_folder = flush_file
"""Flush a folder's names to the disk."""


def _remove_known(folder: Path, owned_names: OwnedNames) -> bool:
    """Remove a folder and the files in it, if all of them are ours; return whether they are."""
    found = entries_of(folder)
    if find_foreign(folder, owned_names):
        return False
    remove_tree(folder, found)
    _remove_mark(folder)
    with suppress(OSError):  # a file that was added meanwhile stays
        os.rmdir(folder)
    return True


def _remove_abandoned(folder: Path, owned_names: OwnedNames) -> None:
    """Remove a folder that is being built, unless its builder is alive or that cannot be told."""
    if is_bare(folder):
        # Its builder may be about to mark it, so nothing but what a kill has left is removed.
        for name in filter(UNFINISHED_MARK.__contains__, os.listdir(folder)):
            clear_if_abandoned(folder / name)
        with suppress(OSError):
            os.rmdir(folder)
        return
    with suppress(BlockingIOError):
        if (lock := lock_file(folder / MARK)) is not None:
            _remove_known(folder, owned_names)
            os.close(lock)


def _change_places(new: Path, target: Path, old: Path) -> None:
    """Put `new` in the place of `target`, and rename the folder that was there to `old`."""
    if _exchange(new, target):
        os.rename(new, old)
        return
    os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        os.rename(old, target)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one system call; return False if the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    at_working_directory, rename_exchange = -100, 2
    names = (at_working_directory, os.fsencode(one), at_working_directory, os.fsencode(other))
    try:
        failed = libc.renameat2(*names, rename_exchange)
    except AttributeError:  # a C library older than glibc 2.28
        return False
    if failed and (number := ctypes.get_errno()) not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(number, os.strerror(number), str(one), None, str(other))
    return not failed


def _remove_mark(folder: Path) -> None:
    """Remove the mark of a folder, if it is ours."""
    if is_mark(folder / MARK):
        os.unlink(folder / MARK)


def _make_folders(folder: Path, made: list[Path]) -> None:
    """Make a folder and those above it; add the ones that were missing to `made`, deepest first."""
    missing = []
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        made.insert(0, path)


def _unmake(folders: list[Path]) -> None:
    """Remove those folders that are still empty."""
    for folder in folders:
        with suppress(OSError):
            os.rmdir(folder)
