"""Load named data sets, manifests and plain folders of images as LabelledImages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from and_dist.config.schema import DataConfig
from and_dist.data.importers.folders import list_folder
from and_dist.data.importers.listing import Files
from and_dist.data.index import LabelledImages, index_files, open_manifest
from and_dist.data.measure import measure
from and_dist.data.shapes import SHAPES_COUNT, draw_shapes
from and_dist.data.stores import FileStore, Names


def load_images(
    source: str, limit: int | None, key: str, bad_images: str = "stop"
) -> LabelledImages:
    """Return the images of an embedded set, a prepared folder or a folder of images.

    `key` is the config key (data.train or data.test) that the error message begins with. `limit`
    keeps the first rows only. Raise ValueError if the source cannot be loaded.
    """
    name, _, split = source.partition("/")
    folder = Path(source)
    try:
        if name == "shapes" and split in SHAPES_COUNT and not folder.exists():
            return draw_shapes(split, min(limit or SHAPES_COUNT[split], SHAPES_COUNT[split]))
        if (folder / "manifest.json").exists():
            return open_manifest(folder).first(limit)
        prepared = [manifest.parent for manifest in folder.glob("*/manifest.json")]
        if prepared:
            raise ValueError(f"its splits are {', '.join(map(str, sorted(prepared)))}; name one")
        return index_folder(folder, bad_images).first(limit)
    except ValueError as error:
        raise ValueError(f"{key}={source}: {error}") from None


def index_folder(folder: Path, bad_images: str = "stop", workers: int = 1) -> LabelledImages:
    """Return the images of class folders, or of a flat folder, measured where they lie.

    `and-dist prepare` does the same once and stores the result. Raise ValueError if there is a bad
    image and `bad_images` is "stop", or if all images are bad; under "skip" bad images are left
    out.
    """
    listing = list_folder(folder, "train")
    assert isinstance(listing.content, Files)
    content, measured = listing.content, measure(listing.content, workers)
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
    return LabelledImages(index, labels_N, listing.class_names, tuple(bad))


def index_named(paths: Sequence[Path]) -> LabelledImages:
    """Return an index of the given image files; raise ValueError if one is not an image."""
    root = Path("/")
    names = Names.of([str(path.absolute().relative_to(root)) for path in paths])
    measured = measure(Files(root, names), workers=1)
    if measured.reasons:
        row = min(measured.reasons)
        raise ValueError(f"{paths[row]}: {measured.reasons[row]}")
    sides = measured.heights_N, measured.widths_N
    return LabelledImages(index_files(root, names, measured.length_N, *sides))


def load_train_and_test(config: DataConfig) -> tuple[LabelledImages, LabelledImages | None]:
    """Return the training set, and the test set or None, as `config` names them."""
    train = load_images(config.train, config.limit, "data.train", config.bad_images)
    return train, load_test(config, train)


def load_test(config: DataConfig, train: LabelledImages) -> LabelledImages | None:
    """Return the test set with labels numbered as in the training set; None without a test set.

    Raise ValueError if the test set has a class that the training set lacks.
    """
    if config.test is None:
        return None
    test = load_images(config.test, config.limit_test, "data.test", config.bad_images)
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
