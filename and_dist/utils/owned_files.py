"""Write, replace and remove files, and never one that this program did not write. No torch.

Only this module and owned_folders of and_dist and launcher remove files, rename over them or open
them for writing; `make check` finds a call elsewhere. A path that exists is replaced only if its
file is recognised as written by this program, or if the user used --force. A link at the last part
of a path is never followed and never replaced; a link to a folder further up is the user's own
arrangement and is followed.

A file is written under an unpredictable name beside its place, flushed, and then renamed. Where no
file may exist, it gets its name by a hard link, which fails if there is one. The writer holds a
lock on the temporary file, so that a process that finds an unlocked one knows that its writer is
gone and removes it.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from and_dist.utils.disk_errors import naming_disk, room_left
from and_dist.utils.file_locks import lock_file
from and_dist.utils.plain_files import open_plain, read_plain

TOKEN = r"[0-9a-f]{16}"
"""A pattern of the unpredictable part of temporary names."""
LONGEST_STEM = 100
"""The most bytes of a name that its temporary name repeats; a name may have 255 in all."""
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""Errors of file systems that cannot make a hard link."""

PUBLIC, PRIVATE = 0o666, 0o600
"""Modes of a file that those whom the umask lets may read, and of one for its owner alone."""

IsOurs = Callable[[Path], bool]
"""A test of a regular file: whether this program wrote it."""


class NotOursError(ValueError):
    """Report that a file or folder of somebody else is where this program is to write."""


def never(_: Path) -> bool:
    """Recognise no file, so that the path has to be free."""
    return False


def always(_: Path) -> bool:
    """Recognise every regular file, because the user used --force or the folder is ours."""
    return True


def is_json_with(*keys: str) -> IsOurs:
    """Return a test for JSON objects, or lists of them, that have the given keys."""

    def is_ours(path: Path) -> bool:
        found = read_json(path)
        items = found if isinstance(found, list) and found else [found]
        return all(isinstance(item, dict) and set(keys) <= item.keys() for item in items)

    return is_ours


def starts_with(pattern: str) -> IsOurs:
    """Return a test for files whose first 4,096 bytes match a pattern from their start."""

    def is_ours(path: Path) -> bool:
        try:
            with open_plain(path) as file:
                return re.match(pattern.encode(), file.read(4096)) is not None
        except OSError:
            return False

    return is_ours


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; None if it cannot be read or is not JSON."""
    try:
        return json.loads(read_plain(path))
    except (OSError, ValueError, RecursionError):
        return None


def sum_of(path: Path) -> str:
    """Return the sha256 of a file; raise OSError for a link or a device."""
    with open_plain(path) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def kind_of(path: Path) -> str:
    """Return file, folder, link or another kind of the entry at a path; links are not followed.

    Return "" if nothing is there.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return ""
    except NotADirectoryError:
        return "path through a file"
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
    return kinds.get(stat.S_IFMT(mode), "device, pipe or socket")


def check_file(path: Path, is_ours: IsOurs = never, remedy: str = "move it away") -> None:
    """Raise NotOursError unless a file may be written at `path`; `remedy` ends the message."""
    kind = kind_of(path)
    if kind == "":
        return
    if kind != "file":
        raise NotOursError(f"{path} is a {kind}, and a file is to be written there: {remedy}")
    if not is_ours(path):
        raise NotOursError(f"{path} exists and was not written by and-dist: {remedy}")


def recognise_output(force: bool, is_named: bool, is_ours: IsOurs = never) -> IsOurs:
    """Return the test for files that an output file may replace.

    That is any file under --force, none if the user named the place, and else those that an earlier
    run of the same command has written.
    """
    return always if force else never if is_named else is_ours


def check_output(path: Path, option: str, is_ours: IsOurs) -> None:
    """Raise ValueError unless an output file may be written at the path given by `option`.

    It is NotOursError if another file is there.
    """
    kind = kind_of(path)
    if kind == "file" and not is_ours(path):
        raise NotOursError(f"{path} exists: choose another {option}, or add --force to replace it")
    if kind not in ("file", ""):
        raise NotOursError(f"{path} is a {kind}: {option} takes the name of a file")
    check_writable(path.absolute().parent, str(path))


def check_writable(folder: Path, what: str) -> None:
    """Raise ValueError unless files can be made in a folder, or the folder itself can be made."""
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
    if room_left(there) == 0:
        raise ValueError(f"{what} cannot be written: no room is left on the disk of {there}")


class NewFile:
    """Write a file under a temporary name, then publish it under its own, complete and flushed."""

    def __init__(self, path: Path, is_ours: IsOurs = never, mode: int = PUBLIC) -> None:
        """Create the temporary file; raise NotOursError if the path may not be written."""
        check_file(path, is_ours)
        clear_unfinished(path)
        self.path, self._is_ours = path, is_ours
        with naming_disk(path):
            self.temporary, self.file = _create_aside(path, mode)

    def publish(self) -> None:
        """Give the file its name; raise NotOursError if somebody else has taken it meanwhile."""
        with naming_disk(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            publish(self.temporary, self.path, self._is_ours)
            self.file.close()

    def discard(self) -> None:
        """Remove the temporary file; what a read-only disk keeps, the next writer removes."""
        with suppress(OSError):
            os.unlink(self.temporary)
        with suppress(OSError):  # closing writes buffered bytes, which fails on a full disk
            self.file.close()


@contextmanager
def open_new(
    path: Path, is_ours: IsOurs = never, mode: int = PUBLIC, size: int | None = None
) -> Iterator[BinaryIO]:
    """Open a file that appears under its name if the block ends well, and not at all otherwise.

    A DiskError says its `size`.
    """
    with naming_disk(path, size):
        new = NewFile(path, is_ours, mode)
        try:
            yield new.file
            new.publish()
        except BaseException:
            new.discard()
            raise


def write_file(
    path: Path, content: str | bytes, is_ours: IsOurs = never, mode: int = PUBLIC
) -> None:
    """Write a file so that it is complete or absent, even after a power failure."""
    encoded = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    with open_new(path, is_ours, mode, len(encoded)) as file:
        file.write(encoded)


def create_file(path: Path, content: str) -> bool:
    """Write a file unless the path exists; return whether this process has written it."""
    try:
        write_file(path, content)
    except NotOursError:
        return False
    return True


def create_locked(path: Path, content: str) -> int | None:
    """Write a file unless the path exists; return the descriptor that holds its lock, else None.

    The file is locked before it has its name, and until the descriptor is closed, unless its file
    system has no locks.
    """
    descriptor = None
    try:
        with open_new(path) as file:
            file.write(content.encode())
            descriptor = os.dup(file.fileno())
    except BaseException as error:
        if descriptor is not None:
            os.close(descriptor)
        if isinstance(error, NotOursError):
            return None
        raise
    return descriptor


def open_to_append(path: Path, is_ours: IsOurs) -> BinaryIO:
    """Open a file for appending, unbuffered. Raise NotOursError unless it is new, empty or ours."""
    check_file(path, or_empty(is_ours))
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with naming_disk(path):
        return os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0)


def make_folder(folder: Path) -> None:
    """Make a folder of ours, and those above it, unless it is there."""
    with naming_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)


def or_empty(is_ours: IsOurs) -> IsOurs:
    """Return a test that also recognises an empty file, which nothing has been appended to yet."""
    return lambda path: path.stat().st_size == 0 or is_ours(path)


@contextmanager
def open_shared(temporary: Path) -> Iterator[BinaryIO]:
    """Open the temporary file of a NewFile that another process has created, to write a part of it.

    It is flushed to disk when the block ends.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags), "r+b") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def remove_file(path: Path, is_ours: IsOurs) -> bool:
    """Remove a file if it is ours; return whether it is removed.

    It is renamed before it is tested for the last time, so that a file that takes its place
    meanwhile is not removed.
    """
    if kind_of(path) != "file" or not is_ours(path):
        return False
    aside = aside_name(path, "unfinished")
    with naming_disk(path):
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
def memory_file(folder: Path, size: int) -> Iterator[Path]:
    """Give a file of `size` bytes in memory that has no name, so that no end leaves it behind.

    This user's processes open it by the path until the block ends, and keep its content.
    """
    with naming_disk(folder, size):
        handle = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, PRIVATE)
        try:
            os.posix_fallocate(handle, 0, size)
            yield Path(f"/proc/{os.getpid()}/fd/{handle}")
        finally:
            os.close(handle)


def publish(temporary: Path, path: Path, is_ours: IsOurs) -> None:
    """Rename a finished file to `path` if that is free or ours; raise NotOursError otherwise."""
    check_file(path, is_ours)
    if kind_of(path) == "file":
        os.replace(temporary, path)
    else:
        _rename_to_free_name(temporary, path)


def aside_name(path: Path, kind: str) -> Path:
    """Return an unpredictable name beside a path."""
    return path.with_name(f".{stem_of(path)}.{secrets.token_hex(8)}.{kind}")


def stem_of(path: Path) -> str:
    """Return the part of a path's name that its temporary names repeat."""
    return os.fsdecode(os.fsencode(path.name)[:LONGEST_STEM])


def _create_aside(path: Path, mode: int) -> tuple[Path, BinaryIO]:
    """Create a locked file under an unpredictable name beside `path`, and open it."""
    while True:
        temporary = aside_name(path, "unfinished")
        # O_EXCL follows no link.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.fdopen(os.open(temporary, flags, mode), "w+b")
        with suppress(OSError):  # without locks, files of killed processes are never removed
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if temporary.exists():  # else another process removed it before it was locked
            return temporary, file
        file.close()


def clear_unfinished(path: Path) -> None:
    """Remove the temporary files of killed processes that wrote to the same path."""
    clear_unfinished_in(path.parent, re.escape(stem_of(path)))


def clear_unfinished_in(folder: Path, stems: str = "(?s:.*)") -> None:
    """Remove the temporary files of killed processes in a folder, of names with such a stem."""
    pattern = re.compile(rf"\.{stems}\.{TOKEN}\.unfinished")
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in filter(pattern.fullmatch, os.listdir(folder)):
            clear_if_abandoned(folder / name)


def clear_if_abandoned(temporary: Path) -> None:
    """Remove a temporary file unless its writer is alive."""
    with suppress(OSError):
        if kind_of(temporary) == "file" and (lock := lock_file(temporary)) is not None:
            os.unlink(temporary)
            os.close(lock)


def _rename_to_free_name(temporary: Path, path: Path) -> None:
    """Rename a file; raise NotOursError if `path` exists."""
    try:
        os.link(temporary, path, follow_symlinks=False)
    except FileExistsError:
        raise NotOursError(f"{path} exists and was not written by and-dist: move it away") from None
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        # Without hard links: only one process can create the empty file that is then replaced.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW))
        os.replace(temporary, path)
    else:
        try:
            os.unlink(temporary)
        except OSError:  # a write that fails publishes nothing
            with suppress(OSError):
                os.unlink(path)
            raise
