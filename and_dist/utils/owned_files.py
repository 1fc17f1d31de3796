"""Write, replace and remove files, and never one that this program did not write. No torch.

This module and owned_folders are the only ones of and_dist and launcher that remove, rename over or
open for writing; `make check` finds a call elsewhere. The rule: a name that is taken is taken over
only if what lies there is recognised as written by this program, or if the user said --force. Links
are never followed at the last part of a path and never replaced; a link to a folder further up is
the user's own arrangement and is respected.

A file is written under an unpredictable name beside its place, flushed, and then takes its name: by
a hard link where nothing may be there, which fails if something is. The writer holds a lock on it,
so that whoever finds an unlocked one knows that its writer is gone and removes it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

TOKEN = r"[0-9a-f]{16}"
LONGEST_STEM = 100
"""Bytes of a name that are repeated in its temporary name; a name may have 255 in all."""
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)

IsOurs = Callable[[Path], bool]
"""Says of a regular file whether this program wrote it."""


class NotOursError(ValueError):
    """Something that this program did not write stands where it is to write."""


def never(_: Path) -> bool:
    """Recognise nothing: the place has to be free."""
    return False


def always(_: Path) -> bool:
    """Recognise every regular file: the user said --force."""
    return True


def is_json_with(*keys: str) -> IsOurs:
    """Recognise a JSON object by keys that it has; of a list, every item has to have them."""

    def is_ours(path: Path) -> bool:
        found = read_json(path)
        items = found if isinstance(found, list) and found else [found]
        return all(isinstance(item, dict) and set(keys) <= item.keys() for item in items)

    return is_ours


def starts_with(pattern: str) -> IsOurs:
    """Recognise a file by its first 4,096 bytes."""

    def is_ours(path: Path) -> bool:
        try:
            with path.open("rb") as file:
                return re.match(pattern.encode(), file.read(4096)) is not None
        except OSError:
            return False

    return is_ours


def read_json(path: Path) -> Any:
    """Return what a JSON file holds, None for anything that is none."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def sum_of(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def kind_of(path: Path) -> str:
    """Return file, folder, link, or what else there is; "" for nothing. Links are not followed."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return ""
    except NotADirectoryError:
        return "path through a file"
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
    return kinds.get(stat.S_IFMT(mode), "device, pipe or socket")


def check_file(path: Path, is_ours: IsOurs = never, remedy: str = "move it away") -> None:
    """Raise NotOursError unless a file may be written at `path`."""
    kind = kind_of(path)
    if kind == "":
        return
    if kind != "file":
        raise NotOursError(f"{path} is a {kind}, and a file is to be written there: {remedy}")
    if not is_ours(path):
        raise NotOursError(f"{path} exists and was not written by and-dist: {remedy}")


def recognise_output(force: bool, is_named: bool, is_ours: IsOurs = never) -> IsOurs:
    """Return what an output file may replace: anything under --force, nothing where the user named
    the place, else what an earlier run of the same command has left there."""
    return always if force else never if is_named else is_ours


def check_output(path: Path, option: str, is_ours: IsOurs) -> None:
    """Raise ValueError unless an output file that an option names may be written."""
    kind = kind_of(path)
    if kind == "file" and not is_ours(path):
        raise NotOursError(f"{path} exists: choose another {option}, or add --force to replace it")
    if kind not in ("file", ""):
        raise NotOursError(f"{path} is a {kind}: {option} takes the name of a file")
    check_writable(path.absolute().parent, str(path))


def check_writable(folder: Path, what: str) -> None:
    """Raise ValueError unless files can be made in a folder, or the folder itself can be."""
    there = folder.absolute()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"{what} cannot be written: {there} is not a folder")
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        raise ValueError(f"{what} cannot be written: the disk of {there} is read-only")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        user = os.environ.get("USER") or f"user {os.getuid()}"
        raise ValueError(f"{what} cannot be written: {there} does not let {user} write")
    if os.statvfs(there).f_bavail == 0:
        raise ValueError(f"{what} cannot be written: no room is left on the disk of {there}")


class NewFile:
    """A file that is written aside and then published under its name, whole and flushed."""

    def __init__(self, path: Path, is_ours: IsOurs = never) -> None:
        check_file(path, is_ours)
        _clear_unfinished(path)
        self.path, self._is_ours = path, is_ours
        self.temporary, self.file = _create_aside(path)

    def publish(self) -> None:
        """Give the file its name; NotOursError if somebody else has taken it meanwhile."""
        self.file.flush()
        os.fsync(self.file.fileno())
        publish(self.temporary, self.path, self._is_ours)
        self.file.close()

    def discard(self) -> None:
        """Leave nothing behind."""
        with suppress(FileNotFoundError):
            os.unlink(self.temporary)
        with suppress(OSError):  # a full disk does not take what it still holds back
            self.file.close()


@contextmanager
def open_new(path: Path, is_ours: IsOurs = never) -> Iterator[BinaryIO]:
    """Open a file that has its name once the block has ended well, and is not there otherwise."""
    new = NewFile(path, is_ours)
    try:
        yield new.file
        new.publish()
    except BaseException:
        new.discard()
        raise


def write_file(path: Path, content: str | bytes, is_ours: IsOurs = never) -> None:
    """Write a whole file, so that it is never half there, not even where the power fails."""
    encoded = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    with open_new(path, is_ours) as file:
        file.write(encoded)


def create_file(path: Path, content: str) -> bool:
    """Write a whole file only where nothing is; return whether this process made it."""
    try:
        write_file(path, content)
    except NotOursError:
        return False
    return True


def open_to_append(path: Path, is_ours: IsOurs) -> BinaryIO:
    """Open a file that grows, unbuffered: a new one, an empty one, or one that is ours."""
    check_file(path, or_empty(is_ours))
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0)


def or_empty(is_ours: IsOurs) -> IsOurs:
    """Recognise an empty file too: one that has not begun to grow."""
    return lambda path: path.stat().st_size == 0 or is_ours(path)


@contextmanager
def open_shared(temporary: Path) -> Iterator[BinaryIO]:
    """Open the temporary file of a NewFile that another process began, to write a part of it."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags), "r+b") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def remove_file(path: Path, is_ours: IsOurs) -> bool:
    """Remove a file if it is ours at the moment it goes; return whether it went.

    It is renamed first and looked at then, so that a file that takes its place meanwhile stays.
    """
    if kind_of(path) != "file" or not is_ours(path):
        return False
    aside = aside_name(path, "unfinished")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    if is_ours(aside):
        os.unlink(aside)
        return True
    with suppress(NotOursError):
        _rename_to_free_name(aside, path)
    return False


def read_clock_of(folder: Path) -> float:
    """Return the time by the clock of a folder's file system, which may be another machine's."""
    new = NewFile(folder / "clock")
    try:
        return os.fstat(new.file.fileno()).st_mtime
    finally:
        new.discard()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder among the system's temporary ones, which goes with all that is in it."""
    with tempfile.TemporaryDirectory(prefix="and-dist-") as name:
        yield Path(name)


@contextmanager
def memory_file(folder: Path, size: int) -> Iterator[Path]:
    """Make a file of so many bytes that is gone after the block; who has it open keeps it."""
    handle, name = tempfile.mkstemp(prefix="and-dist-", dir=folder)
    try:
        try:
            os.posix_fallocate(handle, 0, size)
        finally:
            os.close(handle)
        yield Path(name)
    finally:
        os.unlink(name)


def publish(temporary: Path, path: Path, is_ours: IsOurs) -> None:
    """Rename a finished file to its name, if that is free or what has it is ours."""
    check_file(path, is_ours)
    if kind_of(path) == "file":
        os.replace(temporary, path)
    else:
        _rename_to_free_name(temporary, path)


def aside_name(path: Path, kind: str) -> Path:
    """Return a name beside a path that nobody can foresee."""
    return path.with_name(f".{stem_of(path)}.{secrets.token_hex(8)}.{kind}")


def stem_of(path: Path) -> str:
    """Return the part of a name that its temporary names repeat."""
    return os.fsdecode(os.fsencode(path.name)[:LONGEST_STEM])


def lock_file(path: Path) -> int | None:
    """Lock a file of a writer's and return its descriptor; BlockingIOError where one lives.

    None where that cannot be told, as on a file system without locks: then nothing may be removed.
    It is opened for writing, because NFS locks no other files.
    """
    try:
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


def _create_aside(path: Path) -> tuple[Path, BinaryIO]:
    """Create a locked file under an unpredictable name; O_EXCL follows no link."""
    while True:
        temporary = aside_name(path, "unfinished")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.fdopen(os.open(temporary, flags, 0o666), "w+b")
        with suppress(OSError):  # a file system without locks keeps what was killed
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if temporary.exists():  # else it was taken for a leftover before it was locked
            return temporary, file
        file.close()


def _clear_unfinished(path: Path) -> None:
    """Remove the temporary files of killed processes that wrote to the same name."""
    pattern = re.compile(rf"\.{re.escape(stem_of(path))}\.{TOKEN}\.unfinished")
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in filter(pattern.fullmatch, os.listdir(path.parent)):
            clear_if_abandoned(path.parent / name)


def clear_if_abandoned(temporary: Path) -> None:
    """Remove a temporary file unless the process that writes it lives."""
    with suppress(OSError):
        if kind_of(temporary) == "file" and (lock := lock_file(temporary)) is not None:
            os.unlink(temporary)
            os.close(lock)


def _rename_to_free_name(temporary: Path, path: Path) -> None:
    """Rename without replacing anything."""
    try:
        os.link(temporary, path, follow_symlinks=False)
    except FileExistsError:
        raise NotOursError(f"{path} exists and was not written by and-dist: move it away") from None
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        # Take the name first, which only one process can, where it cannot be linked to.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW))
        os.replace(temporary, path)
    else:
        os.unlink(temporary)
