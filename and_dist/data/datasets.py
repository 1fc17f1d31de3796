"""Load named data sets, manifests and plain folders of images as LabelledImages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from and_dist.config.schema import DataConfig
from and_dist.data.importers.folders import list_folder
from and_dist.data.importers.listing import Files, Listing
from and_dist.data.index import LabelledImages, index_files, open_manifest
from and_dist.data.manifest import refuse_without_manifest
from and_dist.data.measure import measure
from and_dist.data.shapes import SHAPES_COUNT, draw_shapes
from and_dist.data.stores import FileStore, Names
from and_dist.utils.counter_random import derive_key, draw_uniform
from and_dist.utils.progress import NoReport, Reporter

NOT_REPORTED = NoReport()


def load_images(
    source: str,
    limit: int | None,
    key: str,
    bad_images: str = "stop",
    reporter: Reporter = NOT_REPORTED,
    decode_mb: int | None = None,
) -> LabelledImages:
    """Return the images of an embedded set, a prepared folder or a folder of images.

    `key` is the config key (data.train or data.test) that the error message begins with. `limit`
    keeps the first rows only. Images of a folder that take more than `decode_mb` when they are
    decoded are bad. Raise ValueError if the source cannot be loaded.
    """
    name, _, split = source.partition("/")
    folder = Path(source)
    try:
        if name == "shapes" and split in SHAPES_COUNT and not folder.exists():
            return draw_shapes(split, min(limit or SHAPES_COUNT[split], SHAPES_COUNT[split]))
        if (folder / "manifest.json").exists():
            return open_manifest(folder).first(limit)
        refuse_without_manifest(folder)
        prepared = [manifest.parent for manifest in folder.glob("*/manifest.json")]
        if prepared:
            raise ValueError(f"its splits are {', '.join(map(str, sorted(prepared)))}; name one")
        return index_folder(folder, bad_images, limit, reporter, decode_mb)
    except ValueError as error:
        raise ValueError(f"{key}={source}: {error}") from None


def index_folder(
    folder: Path,
    bad_images: str = "stop",
    limit: int | None = None,
    reporter: Reporter = NOT_REPORTED,
    decode_mb: int | None = None,
) -> LabelledImages:
    """Return the images of class folders, or of a flat folder, measured where they lie.

    `limit` keeps the first good ones, and no more of the folder is read than they need.
    `and-dist prepare` does the same once and stores the result. Raise ValueError if there is a bad
    image and `bad_images` is "stop", or if all images are bad; under "skip" bad images are left
    out.
    """
    wanted = limit
    while True:
        reporter.start(f"{folder}: listing images", None)
        listing = list_folder(folder, "train", wanted, reporter.advance)
        images = _measure_listing(listing, bad_images, reporter, decode_mb)
        if listing.is_whole:
            return images.first(limit)
        assert limit is not None
        assert wanted is not None
        if len(images.index) == limit:
            break
        wanted += limit - len(images.index)

    def hash_of_all() -> str:
        return index_folder(folder, bad_images, decode_mb=decode_mb).first(limit).index.content_hash

    return replace(images, index=replace(images.index, hash_of_all=hash_of_all))


def _measure_listing(
    listing: Listing, bad_images: str, reporter: Reporter, decode_mb: int | None
) -> LabelledImages:
    """Return the good images of a listing of files."""
    content = listing.content
    assert isinstance(content, Files)
    reporter.start(f"{content.root.name}: reading headers", len(listing))
    measured = measure(content, 1, reporter.advance, decode_mb)
    store = FileStore(content.root, content.names)
    bad = [f"{store.name(row)}: {why}" for row, why in sorted(measured.reasons.items())]
    if bad and bad_images == "stop":
        raise ValueError(
            f"{bad[0]} ({len(bad)} of {len(listing)} images are bad; data.bad_images=skip leaves "
            "them out)"
        )
    rows = np.flatnonzero(measured.heights_N > 0)
    if len(rows) == 0:
        raise ValueError(f"all {len(listing)} images are bad, {bad[0]} first")
    sides = measured.heights_N[rows], measured.widths_N[rows]
    index = index_files(content.root, content.names.select(rows), measured.length_N[rows], *sides)
    labels_N = None if listing.labels_N is None else listing.labels_N[rows]
    return LabelledImages(index, labels_N, listing.class_names, tuple(bad), listing.ignored)


def index_named(paths: Sequence[Path], decode_mb: int | None = None) -> LabelledImages:
    """Return an index of the given image files.

    Raise ValueError if one is not an image, or takes more than `decode_mb` when it is decoded.
    """
    root = Path("/")
    names = Names.of([str(path.absolute().relative_to(root)) for path in paths])
    measured = measure(Files(root, names), workers=1, decode_mb=decode_mb)
    if measured.reasons:
        row = min(measured.reasons)
        raise ValueError(f"{paths[row]}: {measured.reasons[row]}")
    sides = measured.heights_N, measured.widths_N
    return LabelledImages(index_files(root, names, measured.length_N, *sides))


def load_train(config: DataConfig, reporter: Reporter = NOT_REPORTED) -> LabelledImages:
    """Return the training set as `config` names it, without the images that are held out."""
    return hold_out(_load_whole(config, reporter), config.holdout)[0]


def load_train_and_test(
    config: DataConfig, reporter: Reporter = NOT_REPORTED
) -> tuple[LabelledImages, LabelledImages | None]:
    """Return the training set, and the test set or None, as `config` names them."""
    train, held = hold_out(_load_whole(config, reporter), config.holdout)
    return train, _choose_test(config, train, held, reporter)


def load_test(config: DataConfig, train: LabelledImages) -> LabelledImages | None:
    """Return the test set with labels numbered as in the training set; None without a test set.

    Raise ValueError if the test set has a class that the training set lacks.
    """
    whole = _load_whole(config, NOT_REPORTED) if config.holdout and config.test is None else train
    return _choose_test(config, train, hold_out(whole, config.holdout)[1], NOT_REPORTED)


def _load_whole(config: DataConfig, reporter: Reporter) -> LabelledImages:
    """Return the training set with the images that are held out."""
    given = config.train, config.limit, "data.train", config.bad_images
    return load_images(*given, reporter, config.decode_mb)


def hold_out(images: LabelledImages, share: float) -> tuple[LabelledImages, LabelledImages | None]:
    """Return the images that are trained on, and those that are held out: None for a share of 0.

    A hash of its row decides on each image. An image whose class is left without a training image
    is neither: nothing could recognise it. Raise ValueError if one of both would be empty.
    """
    if share == 0:
        return images, None
    drawn_N1 = draw_uniform(derive_key("data.holdout"), np.arange(len(images.index)), 1)
    is_held_N = drawn_N1[:, 0] < share
    rows, held_rows = np.flatnonzero(~is_held_N), np.flatnonzero(is_held_N)
    if images.labels_N is not None:
        held_rows = held_rows[np.isin(images.labels_N[held_rows], images.labels_N[rows])]
    if len(rows) == 0 or len(held_rows) == 0:
        raise ValueError(
            f"data.holdout={share:g} of {len(images.index):,} images leaves none to "
            f"{'test with' if len(rows) else 'train on'}"
        )
    held = images.select(held_rows, f"held out {share:g}")
    return images.select(rows, f"without {share:g}"), replace(held, left_out=(), ignored="")


def _choose_test(
    config: DataConfig, train: LabelledImages, held: LabelledImages | None, reporter: Reporter
) -> LabelledImages | None:
    """Return the images that data.test names, or else those that are held out."""
    if config.test is None:
        return None if held is None else held.first(config.limit_test)
    given = config.test, config.limit_test, "data.test", config.bad_images
    test = load_images(*given, reporter, config.decode_mb)
    if train.labels_N is None or test.labels_N is None:
        return test
    unknown = sorted(set(test.class_names) - set(train.class_names))
    if unknown:
        raise ValueError(
            f"data.test has classes data.train lacks: {', '.join(unknown)}; "
            f"data.train has {', '.join(train.class_names)}"
        )
    number = {name: label for label, name in enumerate(train.class_names)}
    renumbered = np.array([number[name] for name in test.class_names])
    return replace(test, labels_N=renumbered[test.labels_N], class_names=train.class_names)
