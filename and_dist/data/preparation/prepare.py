"""Turn a source into manifests, and packs if asked for: the work of `and-dist prepare`.

    OUT/train/  OUT/test/   a manifest each, with packed images and the list of those left out
    OUT/.train.FINGERPRINT.building/   an unfinished pack, which the same command resumes

Nothing that this program did not write is touched. The folder of a split is built aside, and
replaces only a folder that holds a manifest of ours and nothing else; any other folder is refused
before the source is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from and_dist.data.importers import find_listings
from and_dist.data.importers.listing import Files, Listing, Pixels
from and_dist.data.index import (
    CHOOSE_ANOTHER,
    PACKED_FILES,
    PART_COLUMNS,
    ImageIndex,
    LabelledImages,
    index_archive,
    index_files,
    index_pixels,
    names_of_manifest,
    new_manifest_folder,
    open_manifest,
    write_manifest,
)
from and_dist.data.manifest import MANIFEST
from and_dist.data.measure import measure
from and_dist.data.preparation.pack import fingerprint_of, plan_pack, write_pack
from and_dist.data.stores import ArchiveStore, FileStore
from and_dist.data.transcode import PackOptions
from and_dist.utils.owned_files import NotOursError, check_writable, open_new, read_json
from and_dist.utils.owned_folders import NewFolder, check_folder, remove_tree
from and_dist.utils.plain_files import open_plain
from and_dist.utils.progress import Reporter

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Job:
    """Hold the options of one `and-dist prepare`."""

    source: Path
    out: Path
    options: PackOptions
    bad_images: Literal["stop", "skip"]
    workers: int
    reporter: Reporter
    is_downloaded: bool = False
    """True if the source is OUT/source, which `--download` itself wrote."""


@dataclass(frozen=True)
class Finished:
    """Hold one split whose images are in place, before its manifest is written."""

    building: NewFolder
    images: LabelledImages
    length_N: I64


@dataclass
class Split:
    """Hold one split in preparation: all rows of its listing, and {row: reason} of bad images."""

    listing: Listing
    index: ImageIndex
    length_N: I64
    reasons: dict[int, str]

    @property
    def good_rows(self) -> I64:
        """Return the rows that are not bad."""
        is_good_N = np.ones(len(self.index), bool)
        is_good_N[list(self.reasons)] = False
        return np.flatnonzero(is_good_N)


Check = Callable[[ImageIndex, I64, Callable[[int], None]], dict[int, str]]
"""A function that decodes rows, reports its progress and returns {row: reason} of failures."""


def prepare(job: Job, check: Check | None = None) -> dict[str, LabelledImages]:
    """Prepare every split of a source and return them, ready to train on.

    `check` decodes every image first (--verify). Raise ValueError if the source is not understood
    or an image is bad and `job.bad_images` is "stop"; NotOursError if OUT may not be replaced;
    RuntimeError if writing fails.
    """
    if not job.is_downloaded:
        refuse_overlap(job.source, job.out)
    listings = find_listings(job.source)
    if any(isinstance(listing.content, Pixels) for listing in listings):
        job.options.refuse_for_pixels(job.source)
    check_writable(job.out, f"--out {job.out}")
    for listing in listings:
        check_folder(job.out / listing.split, names_of_manifest, CHOOSE_ANOTHER)
    splits = [_index(listing, job) for listing in listings]
    for split in splits:
        if check is not None:
            job.reporter.start(f"{split.listing.split}: decoding", len(split.good_rows))
            split.reasons |= check(split.index, split.good_rows, job.reporter.advance)
    _refuse_bad(splits, job)
    _build(splits, job)
    return {
        split.listing.split: replace(
            open_manifest(_folder_of(split, job)), ignored=split.listing.ignored
        )
        for split in splits
    }


def refuse_overlap(source: Path, out: Path) -> None:
    """Raise NotOursError if OUT is SOURCE, contains it or lies in it, under whatever names."""
    if not source.exists():  # find_listings reports it
        return
    its_places, places = _identities(source), _identities(out)
    relation = ""
    if out.exists() and source.samefile(out):
        relation = "is"
    elif its_places[0] in places:
        relation = "lies in"
    elif out.exists() and places[0] in its_places:
        relation = "contains"
    if relation:
        raise NotOursError(
            f"--out {out} {relation} the source {source}, which is only read: choose another --out"
        )


def _identities(path: Path) -> list[tuple[int, int]]:
    """Return (device, inode) of a path and the folders above it, of those that exist."""
    resolved = path.resolve()
    found = [place.stat() for place in (resolved, *resolved.parents) if place.exists()]
    return [(status.st_dev, status.st_ino) for status in found]


def _build(splits: list[Split], job: Job) -> None:
    """Build the folders of all splits aside, then let each take its place.

    If building fails, earlier folders stay, and an unfinished pack is kept for the same command to
    resume unless an OSError ended it.
    """
    builds: list[NewFolder] = []
    try:
        finished = [_finish(split, job, builds) for split in splits]
        _refuse_bad(splits, job)
        for split, done in zip(splits, finished, strict=True):
            bad_images = _describe_bad(split)
            write_manifest(done.images, done.building.path, done.length_N, bad_images)
        for done in finished:
            earlier = _earlier_pack(done.building.target)
            done.building.publish()
            done.building.remove_from_target(PART_COLUMNS)
            remove_tree(*earlier)
    except OSError as error:
        for building in builds:
            building.discard()
        raise RuntimeError(f"preparing {job.out} failed and left it as it was: {error}") from None
    except BaseException:
        for building in builds:
            building.leave() if job.options.rewrites else building.discard()
        raise


def _index(listing: Listing, job: Job) -> Split:
    """Measure all images of a listing, where they lie."""
    content = listing.content
    job.reporter.start(f"{listing.split}: reading headers", len(listing))
    if isinstance(content, Pixels):
        job.reporter.advance(len(listing))
        return _index_pixels(listing, content)
    measured = measure(content, job.workers, job.reporter.advance)
    sides = measured.heights_N, measured.widths_N
    if isinstance(content, Files):
        index = index_files(content.root, content.names, measured.length_N, *sides)
    else:
        places = content.file_N, content.offset_N, content.length_N
        store = ArchiveStore(content.archives, *places, measured.widths_N)
        index = index_archive(store, measured.heights_N)
    return Split(listing, index, measured.length_N, measured.reasons)


def _index_pixels(listing: Listing, content: Pixels) -> Split:
    """Return the split of a listing that holds pixels, which need no measuring."""
    count, height, width, _ = content.images_NHWC.shape
    index = index_pixels(content.images_NHWC, listing.split)
    return Split(listing, index, np.full(count, 3 * height * width, np.int64), {})


def _finish(split: Split, job: Job, builds: list[NewFolder]) -> Finished:
    """Start the folder of a split, and write the images into it if they are to be rewritten."""
    listing, rows, folder = split.listing, split.good_rows, _folder_of(split, job)
    if isinstance(listing.content, Pixels):
        builds.append(building := new_manifest_folder(folder))
        index = _write_pixels(split, listing.content, building)
        images = LabelledImages(index, listing.labels_N, listing.class_names)
        return Finished(building, images, split.length_N)
    if job.options.rewrites:
        job.reporter.start(f"{listing.split}: packing", len(rows))
        parts = plan_pack(split.index, rows, split.length_N, Path(), job.options)
        builds.append(building := new_manifest_folder(folder, fingerprint_of(parts)))
        parts = [part._replace(folder=building.path) for part in parts]
        packed = write_pack(parts, split.index.content_hash, job.workers, job.reporter.advance)
        split.reasons |= packed.reasons
        index, rows = packed.index, packed.rows
        assert isinstance(index.store, ArchiveStore)
        length_N = index.store.length_N
    else:
        builds.append(building := new_manifest_folder(folder))
        index, length_N = _select(split.index, rows, split.length_N), split.length_N[rows]
    labels_N = None if listing.labels_N is None else listing.labels_N[rows]
    return Finished(building, LabelledImages(index, labels_N, listing.class_names), length_N)


def _write_pixels(split: Split, content: Pixels, building: NewFolder) -> ImageIndex:
    """Write images that came as pixels into one block, and return its index."""
    file = building.path.absolute() / "pixels.bin"
    with open_new(file) as block:
        block.write(np.ascontiguousarray(content.images_NHWC).data)
    index, count = split.index, len(split.index)
    offset_N = np.arange(count, dtype=np.int64) * split.length_N
    places = np.zeros(count, np.int32), offset_N, split.length_N, index.widths_N
    store = ArchiveStore((file,), *places, "pixels")
    return ImageIndex(store, index.heights_N, index.widths_N, index.content_hash)


def _earlier_pack(folder: Path) -> tuple[Path, set[str]]:
    """Return OUT/train.pack, where earlier revisions put packs, and the names in it that are ours.

    The manifest that is about to be replaced lists them.
    """
    pack = folder.with_name(f"{folder.name}.pack")
    about = read_json(folder / MANIFEST) if folder.is_dir() else None
    files = about.get("files", []) if isinstance(about, dict) else []
    names = {os.path.basename(path) for path in files if os.path.dirname(path) == f"../{pack.name}"}
    return pack, {name for name in names if name in PACKED_FILES and _is_packed(pack / name)}


def _is_packed(file: Path) -> bool:
    """Return whether a file is a pack of ours; a tar is told by the name of its first image."""
    if file.suffix != ".tar":
        return True
    try:
        with open_plain(file) as content:
            return re.match(rb"\d{9}\.\w+\0", content.read(100)) is not None
    except OSError:
        return False


def _select(index: ImageIndex, rows: I64, length_N: I64) -> ImageIndex:
    """Return the index of some rows."""
    if len(rows) == len(index):
        return index
    store = index.store.select(rows)
    if isinstance(store, FileStore):
        sides = index.heights_N[rows], index.widths_N[rows]
        return index_files(store.root, store.names, length_N[rows], *sides)
    assert isinstance(store, ArchiveStore)
    return index_archive(store, index.heights_N[rows])


def _refuse_bad(splits: Iterable[Split], job: Job) -> None:
    """Raise ValueError for a bad image if bad images stop the job, or if no good one is left."""
    for split in splits:
        bad = _describe_bad(split)
        if bad and job.bad_images == "stop":
            raise ValueError(
                f"{bad[0]} ({len(bad)} of {len(split.index)} images of the {split.listing.split} "
                "split are bad; --bad-images skip leaves them out and lists them)"
            )
        if len(bad) == len(split.index):
            raise ValueError(f"all {len(bad)} images of the {split.listing.split} split are bad")


def _describe_bad(split: Split) -> list[str]:
    """Return a line for each bad image: its name and the reason."""
    name = split.index.store.name
    return [f"{name(row)}: {split.reasons[row]}" for row in sorted(split.reasons)]


def _folder_of(split: Split, job: Job) -> Path:
    """Return the folder of a split's manifest."""
    return job.out / split.listing.split
