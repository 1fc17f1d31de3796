"""`and-dist prepare`: a source -> manifests, and packs if asked for.

OUT/train/  OUT/test/   a manifest each
OUT/train.pack/         tars of images, or blocks of pixels
OUT/bad_images.txt      what is left out, and why
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from and_dist.data.importers import find_listings
from and_dist.data.importers.listing import Files, Listing, Pixels
from and_dist.data.index import (
    ImageIndex,
    LabelledImages,
    hash_columns,
    index_archive,
    index_files,
    open_manifest,
    save_manifest,
)
from and_dist.data.measure import measure
from and_dist.data.pack import PackOptions, clear_leftovers, write_pack
from and_dist.data.stores import ArchiveStore, FileStore

I64 = NDArray[np.int64]


class Reporter(Protocol):
    """Told what is being done, of how many images, and how many are done."""

    def start(self, what: str, total: int) -> None: ...

    def advance(self, count: int) -> None: ...


@dataclass(frozen=True)
class Job:
    source: Path
    out: Path
    options: PackOptions
    bad_images: Literal["stop", "skip"]
    workers: int
    reporter: Reporter


@dataclass
class Split:
    """One split on its way: all rows of its listing, and why some of them are left out."""

    listing: Listing
    index: ImageIndex
    length_N: I64
    reasons: dict[int, str]

    @property
    def good_rows(self) -> I64:
        is_good_N = np.ones(len(self.index), bool)
        is_good_N[list(self.reasons)] = False
        return np.flatnonzero(is_good_N)


Check = Callable[[ImageIndex, I64, Callable[[int], None]], dict[int, str]]
"""Decodes rows of an index and says which it could not, and why."""


def prepare(job: Job, check: Check | None = None) -> dict[str, LabelledImages]:
    """Every split of a source, ready to train on; `check` looks at every pixel first (--verify)."""
    listings = find_listings(job.source)
    if any(isinstance(listing.content, Pixels) for listing in listings):
        job.options.refuse_for_pixels(job.source)
    try:
        job.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{job.out} cannot be a folder: {error.strerror}") from None
    splits = [_index(listing, job) for listing in listings]
    for split in splits:
        if check is not None:
            job.reporter.start(f"{split.listing.split}: decoding", len(split.good_rows))
            split.reasons |= check(split.index, split.good_rows, job.reporter.advance)
    _refuse_or_list(splits, job)
    finished = [_finish(split, job) for split in splits]
    _refuse_or_list(splits, job)
    prepared = {}
    for split, (images, length_N) in zip(splits, finished, strict=True):
        folder = job.out / split.listing.split
        save_manifest(images, folder, length_N)
        prepared[split.listing.split] = open_manifest(folder)
        clear_leftovers(_pack_folder(split.listing, job), images.index.store)
    return prepared


def _index(listing: Listing, job: Job) -> Split:
    """Measure all images of a listing, where they lie."""
    content = listing.content
    job.reporter.start(f"{listing.split}: reading headers", len(listing))
    if isinstance(content, Pixels):
        job.reporter.advance(len(listing))
        return _index_pixels(listing, content, job)
    measured = measure(content, job.workers, job.reporter.advance)
    sides = measured.heights_N, measured.widths_N
    if isinstance(content, Files):
        index = index_files(content.root, content.names, measured.length_N, *sides)
    else:
        places = content.file_N, content.offset_N, content.length_N
        store = ArchiveStore(content.archives, *places, measured.widths_N)
        index = index_archive(store, measured.heights_N)
    return Split(listing, index, measured.length_N, measured.reasons)


def _index_pixels(listing: Listing, content: Pixels, job: Job) -> Split:
    """Small images that came as pixels become one block of them, packed by nature."""
    folder = _pack_folder(listing, job).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(job.out / listing.split, ignore_errors=True)
    content.images_NHWC.tofile(folder / ".pixels.bin.unfinished")
    (folder / ".pixels.bin.unfinished").rename(folder / "pixels.bin")
    count, height, width, _ = content.images_NHWC.shape
    heights_N, widths_N = np.full(count, height, np.int32), np.full(count, width, np.int32)
    length_N = np.full(count, 3 * height * width, np.int64)
    files = (folder / "pixels.bin",)
    offset_N = np.arange(count, dtype=np.int64) * length_N
    store = ArchiveStore(files, np.zeros(count, np.int32), offset_N, length_N, widths_N, "pixels")
    digest = hash_columns(content.images_NHWC)
    return Split(listing, ImageIndex(store, heights_N, widths_N, digest), length_N, {})


def _finish(split: Split, job: Job) -> tuple[LabelledImages, I64]:
    """The good rows with their labels, rewritten if asked for; (images, bytes of each)."""
    listing, rows = split.listing, split.good_rows
    if isinstance(listing.content, Pixels):
        return LabelledImages(split.index, listing.labels_N, listing.class_names), split.length_N
    if job.options.rewrites:
        job.reporter.start(f"{listing.split}: packing", len(rows))
        # A manifest of what is about to be overwritten must not outlive it.
        shutil.rmtree(job.out / listing.split, ignore_errors=True)
        packed = write_pack(
            split.index, rows, split.length_N, _pack_folder(listing, job), job.options,
            job.workers, job.reporter.advance,
        )  # fmt: skip
        split.reasons |= packed.reasons
        index, rows = packed.index, packed.rows
        assert isinstance(index.store, ArchiveStore)
        length_N = index.store.length_N
    else:
        index, length_N = _select(split.index, rows, split.length_N), split.length_N[rows]
    labels_N = None if listing.labels_N is None else listing.labels_N[rows]
    return LabelledImages(index, labels_N, listing.class_names), length_N


def _select(index: ImageIndex, rows: I64, length_N: I64) -> ImageIndex:
    if len(rows) == len(index):
        return index
    store = index.store.select(rows)
    if isinstance(store, FileStore):
        sides = index.heights_N[rows], index.widths_N[rows]
        return index_files(store.root, store.names, length_N[rows], *sides)
    assert isinstance(store, ArchiveStore)
    return index_archive(store, index.heights_N[rows])


def _refuse_or_list(splits: list[Split], job: Job) -> None:
    """bad_images: stop names the first; skip writes them all down."""
    lines = []
    for split in splits:
        store = split.index.store
        bad = [f"{store.name(row)}: {split.reasons[row]}" for row in sorted(split.reasons)]
        if bad and job.bad_images == "stop":
            raise ValueError(
                f"{bad[0]} ({len(bad)} of {len(split.index)} images of the {split.listing.split} "
                "split are bad; --bad-images skip leaves them out and lists them)"
            )
        if len(bad) == len(split.index):
            raise ValueError(f"all {len(bad)} images of the {split.listing.split} split are bad")
        lines += bad
    told = job.out / "bad_images.txt"
    told.unlink(missing_ok=True)
    if lines:
        told.write_text("".join(f"{line}\n" for line in lines), errors="surrogateescape")


def _pack_folder(listing: Listing, job: Job) -> Path:
    return job.out / f"{listing.split}.pack"
