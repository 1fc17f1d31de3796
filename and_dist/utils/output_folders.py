"""Publish the files that a command writes into a folder by libraries that take a path. No torch.

All writing goes through owned_files and owned_folders, and follows their rule.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from and_dist.utils.disk_errors import naming_disk
from and_dist.utils.folder_names import OwnedNames
from and_dist.utils.owned_files import (
    IsOurs,
    check_file,
    check_output,
    check_writable,
    kind_of,
    never,
    publish,
    remove_file,
    sum_of,
)
from and_dist.utils.owned_folders import NewFolder, check_folder, flush_file


@contextmanager
def publish_folder(folder: Path, owned_names: OwnedNames, names: Container[str]) -> Iterator[Path]:
    """Give a temporary folder, which takes the place of `folder` if the block ends well.

    If the block fails, nothing is left of it. Raise NotOursError if `folder` may not be replaced.
    """
    with naming_disk(folder):
        building = NewFolder(folder, owned_names, names)
        try:
            yield building.path
            building.publish()
        except BaseException:
            building.discard()
            raise


def check_results(
    folder: Path, names: Iterable[str], may_replace: IsOurs | None, owned_names: OwnedNames
) -> None:
    """Raise NotOursError unless publish_results may write these files into a folder."""
    if may_replace is None:
        check_folder(folder, owned_names, "choose another --out, or add --force to write into it")
        check_writable(folder.parent, str(folder))
    else:
        for name in names:
            check_output(folder / name, "--out", may_replace)


@contextmanager
def publish_results(
    folder: Path, names: Sequence[str], may_replace: IsOurs | None, owned_names: OwnedNames
) -> Iterator[Path]:
    """Publish a whole folder, or single files if the user named the folder or used --force.

    A whole folder is published if `may_replace` is None.
    """
    if may_replace is None:
        with publish_folder(folder, owned_names, names) as building:
            yield building
    else:
        with publish_files({name: folder / name for name in names}, may_replace) as building:
            yield building


def names_with_sums(folder: Path, sums: Mapping[str, str]) -> set[str]:
    """Return the names of those files in a folder whose content has the given sha256."""
    return {
        name
        for name, known in sums.items()
        if Path(name).name == name
        and kind_of(folder / name) == "file"
        and sum_of(folder / name) == known
    }


@contextmanager
def publish_files(places: Mapping[str, Path], is_ours: IsOurs = never) -> Iterator[Path]:
    """Give a temporary folder to write into, whose files then take their places.

    `places` maps names in that folder to the files' paths, which all lie in one folder. Files are
    published in this order once all are written; if that fails, none is left where none was.
    Raise NotOursError if a path may not be written.
    """
    for path in places.values():
        check_file(path, is_ours)
    (parent,) = {path.parent for path in places.values()}
    with naming_disk(next(iter(places.values()))):
        building = NewFolder(parent / "output", lambda _: None, places)
        try:
            yield building.path
            with all_or_none() as make:
                for name, path in places.items():
                    flush_file(building.path / name)
                    make(path, partial(publish, building.path / name, path, is_ours))
        finally:
            building.discard()


@contextmanager
def all_or_none() -> Iterator[Callable[[Path, Callable[[], None]], None]]:
    """Give a function that makes a file by another function.

    Files that it made where none was are removed if the block fails.
    """
    made: dict[Path, int] = {}

    def make(path: Path, write: Callable[[], None]) -> None:
        was_free = kind_of(path) == ""
        write()
        if was_free:
            made[path] = path.stat().st_ino

    try:
        yield make
    except BaseException:
        for path, number in made.items():
            with suppress(OSError):
                remove_file(path, partial(_has_number, number))
        raise


def _has_number(number: int, path: Path) -> bool:
    """Return whether a file has an inode's number."""
    return path.stat().st_ino == number
