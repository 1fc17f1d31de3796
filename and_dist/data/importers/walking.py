"""Walk a folder for the image files below it, and count what else lies there."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from and_dist.data.importers.listing import SUFFIXES, is_image_name

MOST_KINDS = 8
"""The largest number of kinds that describe() counts one by one."""
HIDDEN = "hidden"
PIPE = "pipe or device"
OTHER = "other"
AGAIN = "folder that is linked again"
PLURALS = {PIPE: "pipes or devices", AGAIN: "folders that are linked again"}


class Walk:
    """Walks a folder; afterwards `ignored` tells how many of each kind it passed by."""

    def __init__(self, folder: Path) -> None:
        """Keep the folder; read nothing yet."""
        self.folder = folder
        self.ignored: Counter[str] = Counter()
        """Numbers of files that are no images, by suffix, and of what is no file."""
        self.folders: tuple[str, ...] = ()
        """Names of the folders that lie directly in the folder, once it was visited."""
        self._seen: set[tuple[int, int]] = set()

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (folder below the first, names of its images) in the order of their names.

        Each folder is visited once, however many links lead to it, so that a loop of links ends.
        Raise ValueError if a folder cannot be read.
        """
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is not a folder of images")
        waiting = [""]
        while waiting:
            inside = waiting.pop()
            folders: list[str] = []
            names: list[str] = []
            for entry in self._entries(inside):
                kind = kind_of(entry)
                if kind == "folder":
                    folders.append(os.path.join(inside, entry.name))
                elif kind == "image":
                    names.append(entry.name)
                elif kind is not None:
                    self.ignored[kind] += 1
            self.folders = self.folders if inside else tuple(folders)
            waiting += reversed(folders)
            yield inside, names

    def _entries(self, inside: str) -> list[os.DirEntry[str]]:
        """Return what lies in a folder, by name; nothing if the folder was visited before."""
        place = os.path.join(self.folder, inside)
        try:
            about = os.stat(place)
            if (about.st_dev, about.st_ino) in self._seen:
                self.ignored[AGAIN] += 1
                return []
            self._seen.add((about.st_dev, about.st_ino))
            with os.scandir(place) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(f"cannot read folder {place}: {error.strerror}") from None


def kind_of(entry: os.DirEntry[str]) -> str | None:
    """Return folder, image, or the kind of something else; None for a hidden folder."""
    is_hidden = entry.name.startswith(".")
    try:
        if entry.is_dir():
            return None if is_hidden else "folder"
        is_regular = entry.is_file()
    except OSError:  # a link to itself
        is_regular = False
    if not is_regular and os.path.exists(entry.path):
        return PIPE  # opening a pipe waits for a writer, and a device may never end
    if is_hidden:
        return HIDDEN
    if is_image_name(entry.name):
        return "image"  # a broken link, too: it says that an image is missing
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix if is_regular and re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else OTHER


def describe(ignored: Counter[str]) -> str:
    """Return the kinds and their numbers, such as `9 .txt, 2 hidden`; nothing if there are none."""
    first = ignored.most_common(MOST_KINDS)
    rest = ignored.total() - sum(number for _, number in first)
    said = [f"{n:,} {kind if n == 1 else PLURALS.get(kind, kind)}" for kind, n in first]
    return ", ".join([*said, f"{rest:,} of other kinds"] if rest else said)


def no_image(folder: Path, ignored: Counter[str]) -> str:
    """Return the error message about a folder without any image."""
    holds = f" (it holds {describe(ignored)})" if ignored else ""
    return f"{folder} holds no image{holds}; images end in {' '.join(SUFFIXES)}"
