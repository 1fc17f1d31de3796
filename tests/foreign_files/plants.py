"""Plant what a user may have where the program writes, and tell whether it is still there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CONTENT = b"\x00the only copy of somebody's work\n" * 3


@dataclass(frozen=True)
class Plant:
    """One thing of a user's; `where` is relative to the folder of the scene."""

    kind: str
    where: Path

    def __str__(self) -> str:
        return f"{self.kind} at {self.where}"


def _file(place: Path) -> None:
    _clear(place)
    place.write_bytes(CONTENT)


def _folder(place: Path) -> None:
    _clear(place)
    place.mkdir()
    _fill(place)


def _link_to_file(place: Path) -> None:
    _clear(place)
    target = _outside(place)
    target.write_bytes(CONTENT)
    place.symlink_to(target)


def _link_to_folder(place: Path) -> None:
    """Move what the program had there behind a link, as to a disk with more room."""
    target = _outside(place)
    if place.is_dir() and not place.is_symlink():
        place.rename(target)
    else:
        _clear(place)
        target.mkdir()
    _fill(target)
    place.symlink_to(target)


def _inside(place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    _fill(place)


AT: dict[str, Callable[[Path], None]] = {
    "file": _file,
    "folder": _folder,
    "link to a file": _link_to_file,
    "link to a folder": _link_to_folder,
}
"""Things under a name that the program uses."""
IN: dict[str, Callable[[Path], None]] = {"files inside": _inside}
"""Things in a folder that the program uses."""
MAKERS = AT | IN


def plant(root: Path, what: Plant) -> dict[str, object]:
    """Put something there and return what has to be found afterwards."""
    place = root / what.where
    place.parent.mkdir(parents=True, exist_ok=True)
    MAKERS[what.kind](place)
    found = [place, *([] if place.is_symlink() or not place.is_dir() else _planted_in(place))]
    if place.is_symlink():
        target = place.parent / os.readlink(place)
        found += [target, *(_planted_in(target) if target.is_dir() else [])]
    return {str(path): describe(path) for path in found}


def describe(path: Path) -> object:
    """Return what a path is and holds; a folder may gain other things."""
    if path.is_symlink():
        return ("link", os.readlink(path))
    if path.is_dir():
        return "folder"
    return path.read_bytes() if path.exists() else "nothing"


def losses(expected: dict[str, object]) -> list[str]:
    """Return what is not as it was planted, nor in a damaged checkpoint that was put aside."""
    return [
        f"{path}: now {describe(Path(path))!r:.60}"
        for path, before in expected.items()
        if before not in (describe(Path(path)), describe(_put_aside(Path(path))))
    ]


def _put_aside(path: Path) -> Path:
    checkpoint = path.parent
    return checkpoint.with_name(f".{checkpoint.name}.damaged") / path.name


def _planted_in(place: Path) -> list[Path]:
    names = ("notes.txt", ".keep", "zz-copy/cat.jpg", ".mine.unfinished/cat.jpg")
    return [place / name for name in names if os.path.lexists(place / name)]


def _fill(place: Path) -> None:
    for name in ("notes.txt", ".keep", "zz-copy/cat.jpg", ".mine.unfinished/cat.jpg"):
        path = place / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(CONTENT)


def _outside(place: Path) -> Path:
    return place.with_name(f"elsewhere-{place.name.strip('.')}")


def _clear(place: Path) -> None:
    """Make way, so that the user's thing is there in place of the program's."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
