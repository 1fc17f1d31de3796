"""List images that lie in tars, which are read in place and never unpacked."""

from __future__ import annotations

import tarfile
import zlib
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from and_dist.data.importers.guarded_tar import members_of, open_packed_tar, open_tar
from and_dist.data.importers.listing import (
    Listing,
    Members,
    is_image_name,
    load_mat,
    number_classes,
    read_table,
)
from and_dist.data.processes import open_processes
from and_dist.data.stores import FileReader

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
MOST_DEVKIT_BYTES = 10**9
"""The most bytes that the devkit may have once it is unpacked; the published one has 5 MB."""
MOST_CLASS_BYTES = 4096
"""The most bytes of a KEY.cls, which holds a number or a name."""


class Member(NamedTuple):
    """Hold the name, offset and length of one file in a tar."""

    name: str
    offset: int
    length: int


def find_tar_shards(source: Path) -> list[Listing] | None:
    """Return the splits of one tar or of a folder of tars; None if there is no tar.

    KEY.jpg is an image and KEY.cls its class as a number. Shards whose names begin with val or test
    are the test split.
    """
    if source.is_file() and source.suffix == ".tar":
        shards = [source]
    elif source.is_dir():
        shards = sorted(source.glob("*.tar"))
    else:
        return None
    if not shards:
        return None
    with open_processes() as pool:
        contents = list(pool.map(_read_shard, shards))
    held_out = [shard.name.startswith(("val", "test")) for shard in shards]
    listings = []
    for split, wanted in (("train", False), ("test", True)):
        chosen = [at for at, is_test in enumerate(held_out) if is_test == wanted]
        if chosen:
            listings.append(
                _list_shards(split, [shards[at] for at in chosen], [contents[at] for at in chosen])
            )
    return listings


def find_ilsvrc_tars(source: Path) -> list[Listing] | None:
    """Return the splits of ImageNet's original train and val tars; None if there is no train tar.

    The classes of val images come from the devkit, or from synsets.txt and the ground truth. Raise
    ValueError if these do not fit the tars.
    """
    if not (source / TRAIN_TAR).is_file():
        return None
    train = _list_ilsvrc_train(source / TRAIN_TAR)
    if not (source / VAL_TAR).is_file():
        return [train]
    members = [m for m in read_members(source / VAL_TAR) if is_image_name(m.name)]
    members.sort(key=lambda member: member.name)
    synsets, truth = _read_ground_truth(source)
    if len(truth) != len(members):
        raise ValueError(
            f"{source}: {GROUND_TRUTH} has {len(truth)} lines, {VAL_TAR} {len(members)} images"
        )
    number = {name: label for label, name in enumerate(train.class_names)}
    wrong = [line for line in truth if not 1 <= line <= len(synsets)]
    if wrong:
        raise ValueError(
            f"{source}: {GROUND_TRUTH} has {wrong[0]}, which is not one of 1..{len(synsets)}"
        )
    unknown = {synsets[line - 1] for line in truth} - number.keys()
    if unknown:
        raise ValueError(
            f"{source}: {GROUND_TRUTH} names {min(unknown)}, a class {TRAIN_TAR} lacks"
        )
    labels_N = np.array([number[synsets[line - 1]] for line in truth], np.int64)
    content = _members_of([source / VAL_TAR], [members])
    return [train, Listing("test", content, labels_N, train.class_names)]


def read_members(path: Path, start: int = 0) -> list[Member]:
    """Return the files of a tar that begins at byte `start` of a file, with offsets in that file.

    Raise ValueError if the tar is damaged or cut short.
    """
    try:
        with open_tar(path, start) as archive:
            members = _scan(archive)
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"tar {path} cannot be read to its end: {why}") from None
    except Exception as error:  # tarfile may raise anything at damaged headers
        raise ValueError(f"tar {path} cannot be read to its end: {error}") from None
    for member in members:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"tar {path} holds {member.name!r}, a path that leaves its folder")
    return members


def _scan(archive: tarfile.TarFile) -> list[Member]:
    """Return the files of a tar; raise TarError if it is incomplete."""
    members = [
        Member(info.name, info.offset_data, info.size)
        for info in members_of(archive)
        if info.isfile()
    ]
    # tarfile ends without an error at a damaged or incomplete header; a whole tar ends in a block
    # of zeros.
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"it is cut short or damaged at byte {archive.offset}")
    return members


def _read_shard(path: Path) -> tuple[list[Member], dict[str, str]]:
    """Return (images, {key: class}) of one shard."""
    members, reader = read_members(path), FileReader([path])
    classes = {}
    for member in members:
        if member.name.endswith(".cls"):
            if member.length > MOST_CLASS_BYTES:
                raise ValueError(f"tar {path}: {member.name!r} has {member.length:,} bytes")
            text = reader.read(0, member.offset, member.length)
            try:
                classes[_key(member.name)] = text.decode().strip()
            except UnicodeDecodeError:
                raise ValueError(f"tar {path}: {member.name} is no text") from None
    return [member for member in members if is_image_name(member.name)], classes


def _key(name: str) -> str:
    """Return a file's key: its name up to the first dot of the last part, which a sample shares."""
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


def _list_shards(
    split: str, shards: list[Path], contents: list[tuple[list[Member], dict[str, str]]]
) -> Listing:
    """Return the listing of some shards; it has labels only if every image has a class."""
    content = _members_of(shards, [images for images, _ in contents])
    if len(content.file_N) == 0:
        raise ValueError(f"{shards[0]} and the other {split} shards hold no image")
    classes = [known.get(_key(image.name)) for images, known in contents for image in images]
    if any(name is None for name in classes):
        return Listing(split, content, None, ())
    # Numbers come first and in the order of their values.
    names = sorted({str(name) for name in classes}, key=lambda n: (not n.isdecimal(), n.zfill(12)))
    number = {name: label for label, name in enumerate(names)}
    labels_N = np.array([number[str(name)] for name in classes], np.int64)
    return Listing(split, content, labels_N, tuple(names))


def _list_ilsvrc_train(path: Path) -> Listing:
    """Return the listing of a tar that holds one tar a class, both read in place."""
    inner = sorted(m for m in read_members(path) if m.name.endswith(".tar"))
    if not inner:
        raise ValueError(f"{path} holds no tar of a class")
    with open_processes() as pool:
        starts = [member.offset for member in inner]
        groups = list(pool.map(partial(read_members, path), starts, chunksize=16))
    classes = [PurePosixPath(member.name).stem for member in inner]
    labels_C, class_names = number_classes(classes)
    content = _members_of([path], [[member for group in groups for member in group]])
    return Listing("train", content, labels_C.repeat([len(g) for g in groups]), class_names)


def _members_of(archives: list[Path], groups: list[list[Member]]) -> Members:
    """Return the given files of each archive as columns."""
    places = [(m.offset, m.length) for group in groups for m in group]
    table = np.array(places, np.int64).reshape(-1, 2)
    file_N = np.repeat(np.arange(len(archives), dtype=np.int32), [len(g) for g in groups])
    return Members(tuple(a.absolute() for a in archives), file_N, table[:, 0], table[:, 1])


def _read_ground_truth(source: Path) -> tuple[list[str], list[int]]:
    """Return (class folder by ILSVRC2012 id, id of each val image) from devkit or text files."""
    if (source / DEVKIT).is_file():
        return _read_devkit(source / DEVKIT)
    for name in ("synsets.txt", GROUND_TRUTH):
        if not (source / name).is_file():
            raise ValueError(
                f"{source} has no {name}: the classes of {VAL_TAR} come from {DEVKIT}, or from "
                f"synsets.txt (one class a line, in the order of their ids) and {GROUND_TRUTH}"
            )
    lines = read_table(source / "synsets.txt").splitlines()
    synsets = [line.split()[0] for line in lines if line.strip()]
    try:
        return synsets, [int(line) for line in read_table(source / GROUND_TRUTH).split()]
    except ValueError as error:
        raise ValueError(f"{source / GROUND_TRUTH} is no list of numbers: {error}") from None


def _read_devkit(path: Path) -> tuple[list[str], list[int]]:
    """Return (class folder by ILSVRC2012 id, id of each val image) from the devkit."""
    try:
        files = {}
        with open_packed_tar(path, MOST_DEVKIT_BYTES) as archive:
            for info in members_of(archive):
                if info.isfile() and info.name.endswith(("meta.mat", GROUND_TRUTH)):
                    opened = archive.extractfile(info)
                    assert opened is not None
                    files[PurePosixPath(info.name).name] = opened.read()
        meta = load_mat(files["meta.mat"], f"meta.mat of {path}", "MATLAB file")["synsets"]
        leaves = sorted(
            (int(s["ILSVRC2012_ID"]), str(s["WNID"])) for s in meta if int(s["num_children"]) == 0
        )
        return [name for _, name in leaves], [int(t) for t in files[GROUND_TRUTH].split()]
    except (
        tarfile.TarError,
        OSError,
        EOFError,
        zlib.error,
        LookupError,
        ValueError,
        TypeError,
    ) as error:
        raise ValueError(f"{path} is no devkit of ILSVRC2012: {error}") from None
