"""List images that are files: class folders, ImageNet's folders, CUB-200-2011, Stanford Dogs.

N all rows, X folders of files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from and_dist.data.importers.listing import Files, Listing, load_mat, number_classes, read_table
from and_dist.data.importers.walking import Walk, describe, no_image
from and_dist.data.stores import Names
from and_dist.utils.progress import silently

SPLITS = {"train": "train", "val": "test", "valid": "test", "validation": "test", "test": "test"}
"""The split that each name of a folder stands for."""


def find_train_and_val(source: Path) -> list[Listing] | None:
    """Return the splits of a folder that holds train/ and perhaps val/ or test/; else None.

    Each is a folder of class folders or a flat folder. Raise ValueError if two are test sets.
    """
    if not (source / "train").is_dir():
        return None
    folders = [source / name for name in SPLITS if (source / name).is_dir()]
    listings = [list_folder(folder, SPLITS[folder.name]) for folder in folders]
    names = [listing.split for listing in listings]
    if len(set(names)) < len(names):
        raise ValueError(f"{source} holds several of {', '.join(f.name for f in folders[1:])}")
    return listings


def find_class_folders(source: Path) -> list[Listing] | None:
    """Return a folder's images as a training split; None if it is no folder."""
    return [list_folder(source, "train")] if source.is_dir() else None


def list_folder(
    folder: Path, split: str, at_most: int | None = None, progress: Callable[[int], None] = silently
) -> Listing:
    """Return the images below a folder in the order of their names, or the first `at_most`.

    The label of an image is the first folder on its path; if any image lies outside all folders,
    none has a label. What is no image is passed by and counted. `progress` is told how many more
    were found. Raise ValueError if there is no image.
    """
    text, is_whole, walk = bytearray(), True, Walk(folder)
    ends: list[int] = []
    groups: list[tuple[str, int]] = []
    for inside, names in walk:
        room = None if at_most is None else at_most - len(ends)
        is_whole = room is None or len(names) <= room
        names = names[:room]
        groups += [(inside.split(os.sep)[0], len(names))] if names else []
        for name in names:
            text += os.fsencode(os.path.join(inside, name))
            ends.append(len(text))
        progress(len(names))
        if not is_whole:
            break
    if not ends:
        raise ValueError(no_image(folder, walk.ignored))
    all_names = Names(np.frombuffer(bytes(text), np.uint8), np.array(ends, np.int64))
    listing = Listing(
        split, Files(folder.absolute(), all_names), None, (), describe(walk.ignored), is_whole
    )
    # Images of the folder itself come first, so they are among the first ones.
    if any(group == "" for group, _ in groups):
        return listing
    # Folders that were not reached are classes too, though none of their images is among the first.
    others = () if is_whole else walk.folders
    labels_X, class_names = number_classes([group for group, _ in groups], others)
    labels_N = labels_X.repeat([count for _, count in groups])
    return replace(listing, labels_N=labels_N, class_names=class_names)


def find_cub(source: Path) -> list[Listing] | None:
    """Return the splits of CUB-200-2011; None if its tables are not there.

    The tables are images.txt, image_class_labels.txt, train_test_split.txt and perhaps classes.txt,
    and the images lie in images/. Without test images there is a training split alone.
    """
    tables = [
        source / f"{name}.txt"
        for name in ("images", "image_class_labels", "train_test_split", "classes")
    ]
    if not all(table.is_file() for table in tables[:3]):
        return None
    names, labels, is_train, classes = (
        dict(_read_pairs(table)) if table.is_file() else {} for table in tables
    )
    for table, column in ((tables[1], labels), (tables[2], is_train)):
        missing = names.keys() - column.keys()
        if missing:
            raise ValueError(f"{table} has no line for image {min(missing)} of {tables[0].name}")
    strange = [label for label in labels.values() if not label.isdecimal()]
    if strange:
        raise ValueError(f"{tables[1]} has the class {strange[0]!r}, which is no number")
    class_of = {number: at for at, number in enumerate(sorted(set(labels.values()), key=int))}
    class_names = tuple(classes.get(number, number) for number in class_of)
    listings = []
    for split, flag in (("train", "1"), ("test", "0")):
        rows = [number for number in names if is_train.get(number) == flag]
        content = _files_of_list(tables[0], source / "images", [names[r] for r in rows])
        labels_N = np.array([class_of[labels[r]] for r in rows], np.int64)
        if rows or split == "train":
            listings.append(Listing(split, content, labels_N, class_names))
    return listings


def find_dogs(source: Path) -> list[Listing] | None:
    """Return the splits of Stanford Dogs; None if its files are not there.

    They are Images/ and the lists train_list.mat and test_list.mat, here or in lists/.
    """
    places = [
        folder for folder in (source, source / "lists") if (folder / "train_list.mat").is_file()
    ]
    if not places or not (source / "Images").is_dir():
        return None
    listings = []
    for split in ("train", "test"):
        path, kind = places[0] / f"{split}_list.mat", "list of Stanford Dogs"
        try:
            found = np.atleast_1d(load_mat(path, str(path), kind)["file_list"]).tolist()
        except KeyError as error:
            raise ValueError(f"{path} is no {kind}: it has no {error}") from None
        if not all(isinstance(file, str) for file in found):
            raise ValueError(f"{path} is no {kind}: its file_list are no names")
        files = [str(file) for file in found]
        labels_N, class_names = number_classes([file.split("/")[0] for file in files])
        content = _files_of_list(path, source / "Images", files)
        listings.append(Listing(split, content, labels_N, class_names))
    return listings


def _files_of_list(path: Path, folder: Path, names: list[str]) -> Files:
    """Return the files of a folder that a list names; raise ValueError if one lies elsewhere."""
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{path} names {name}, which is not in {folder}")
    return Files(folder.absolute(), Names.of(names))


def _read_pairs(path: Path) -> list[tuple[str, str]]:
    """Return (number, value) of each line of a table; raise ValueError if it is none."""
    pairs = []
    for line in read_table(path).splitlines():
        match line.split(maxsplit=1):
            case [number, value]:
                pairs.append((number, value))
            case [_]:
                raise ValueError(f"{path} is not a table of numbers and values")
    return pairs
