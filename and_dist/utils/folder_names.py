"""Recognise folders, and what lies in them, by names: which are ours, and which are foreign."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container
from pathlib import Path

from and_dist.utils.owned_files import TOKEN, kind_of

MARK = ".and-dist-building"
"""A file in a folder that is being built: the token of the folder's name, and perhaps RESUMABLE."""
RESUMABLE = " to be resumed by the same command"
"""The end of a mark whose folder the same command resumes."""
OwnedNames = Callable[[Path], Container[str] | None]
"""A function from a folder to the paths below it that are ours; None if the folder is not ours."""


class Named:
    """Hold all names that match a pattern as a whole, as a container."""

    def __init__(self, pattern: str) -> None:
        """Compile the pattern."""
        self._pattern = re.compile(pattern)

    def __contains__(self, name: object) -> bool:
        """Return whether a name matches."""
        return isinstance(name, str) and self._pattern.fullmatch(name) is not None


ASIDE = re.compile(rf"\.(.+)\.{TOKEN}\.(?:building|replaced)")
"""A pattern of the names of folders that are built or have been replaced."""
UNFINISHED_MARK = Named(rf"\.{re.escape(MARK)}\.{TOKEN}\.unfinished")
"""Names of temporary files of a mark."""
UNFINISHED = Named(rf"\..+\.{TOKEN}\.unfinished")
"""Names of all temporary files."""


def name_of(folder: Path) -> str:
    """Return a folder's own name, also while it lies aside under a temporary one."""
    found = ASIDE.fullmatch(folder.name)
    return folder.name if found is None else found.group(1)


def is_mark(path: Path) -> bool:
    """Return whether a file is a mark of ours, of whatever folder."""
    return (
        kind_of(path) == "file"
        and re.fullmatch(f"{TOKEN}({RESUMABLE})?", read_mark(path)) is not None
    )


def find_foreign(folder: Path, owned_names: OwnedNames) -> str:
    """Return a description of one thing in a folder that is not ours; "" if there is none."""
    owned, found = owned_names(folder), entries_of(folder)
    if owned is None:
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        return f"it holds {shown}" if found else "it is empty"
    for name in found:
        if name not in owned:
            return f"it holds {name}"
        if (kind := kind_of(folder / name)) not in ("file", "") and not name.endswith("/"):
            return f"it holds {name}, a {kind}"
    return ""


def entries_of(folder: Path) -> list[str]:
    """Return the sorted paths below a folder: files, links and, with a / at the end, empty folders.

    The folder's mark is left out.
    """
    found = []
    for base, folders, names in os.walk(folder):
        inside = os.path.relpath(base, folder)
        prefix = "" if inside == "." else inside + os.sep
        links = [name for name in folders if kind_of(Path(base, name)) == "link"]
        found += [prefix + name for name in (*names, *links)]
        if prefix and not folders and not names:
            found.append(inside + "/")
    return sorted(name for name in found if name != MARK or not is_mark(folder / MARK))


class Either:
    """Hold all names that any of some containers holds."""

    def __init__(self, *containers: Container[str]) -> None:
        """Keep the containers."""
        self._containers = containers

    def __contains__(self, name: object) -> bool:
        """Return whether any of the containers holds a name."""
        return any(name in container for container in self._containers)


def names_being_built(token: str, contents: Container[str]) -> OwnedNames:
    """Return the OwnedNames of a folder that is being built, which knows it by its mark."""

    def owned_names(folder: Path) -> Container[str] | None:
        is_marked = read_mark(folder / MARK).removesuffix(RESUMABLE) == token
        return Either(contents, UNFINISHED) if is_marked or is_bare(folder) else None

    return owned_names


def is_bare(folder: Path) -> bool:
    """Return whether a folder's builder was killed before it could write the mark."""
    return all(name in UNFINISHED_MARK for name in os.listdir(folder))


def read_mark(path: Path) -> str:
    """Return the text of a file; "" if it cannot be read."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
