"""Named data sets and plain folders -> LabelledImages.

The embedded set, `shapes`, is drawn by this module: eight kinds of shape in random colours, places,
sizes and turns over random gradients, so neither colour nor brightness nor raw pixels tell a class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from and_dist.config.schema import DataConfig
from and_dist.data.importers.folders import list_folder
from and_dist.data.importers.listing import Files
from and_dist.data.index import LabelledImages, index_files, index_pixels, open_manifest
from and_dist.data.measure import measure
from and_dist.data.stores import FileStore, Names
from and_dist.utils.counter_random import derive_key, draw_uniform

Field = NDArray[np.float64]
SHAPES_SIDE = 32
SHAPES_COUNT = {"train": 2000, "test": 500}


def load_images(
    source: str, limit: int | None, key: str, bad_images: str = "stop"
) -> LabelledImages:
    """The images `key` (data.train or data.test) names; ValueError begins with the key."""
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
    """Class folders, or a flat folder, as it is; `and-dist prepare` does the same once for all."""
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
    """Images by their own names; ValueError where one is none."""
    root = Path("/")
    names = Names.of([str(path.absolute().relative_to(root)) for path in paths])
    measured = measure(Files(root, names), workers=1)
    if measured.reasons:
        row = min(measured.reasons)
        raise ValueError(f"{paths[row]}: {measured.reasons[row]}")
    sides = measured.heights_N, measured.widths_N
    return LabelledImages(index_files(root, names, measured.length_N, *sides))


def load_train_and_test(config: DataConfig) -> tuple[LabelledImages, LabelledImages | None]:
    train = load_images(config.train, config.limit, "data.train", config.bad_images)
    return train, load_test(config, train)


def load_test(config: DataConfig, train: LabelledImages) -> LabelledImages | None:
    """Labels of the test set are counted as the training set counts them."""
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


def draw_shapes(split: str, count: int) -> LabelledImages:
    """The first `count` images of a split; an image is a function of its split and row."""
    rows_N = np.arange(count)
    draws_NX = draw_uniform(derive_key(0, "shapes", split), rows_N, 24)
    labels_N = rows_N % len(SHAPES)
    side = np.linspace(-1, 1, SHAPES_SIDE)
    centre_N2 = 0.3 * (2 * draws_NX[:, 0:2] - 1)
    radius_N = 0.45 + 0.25 * draws_NX[:, 2]
    turn_N = 2 * np.pi * draws_NX[:, 3]
    x_NHW = (side[None, None, :] - centre_N2[:, 0, None, None]) / radius_N[:, None, None]
    y_NHW = (side[None, :, None] - centre_N2[:, 1, None, None]) / radius_N[:, None, None]
    cos, sin = np.cos(turn_N)[:, None, None], np.sin(turn_N)[:, None, None]
    u_NHW, v_NHW = cos * x_NHW + sin * y_NHW, cos * y_NHW - sin * x_NHW
    distance_NHW = np.empty_like(u_NHW)
    for label, shape in enumerate(SHAPES.values()):
        is_label = labels_N == label
        distance_NHW[is_label] = shape(u_NHW[is_label], v_NHW[is_label])
    pixel = 2 / SHAPES_SIDE / radius_N[:, None, None]
    cover_NHW1 = np.clip(0.5 - distance_NHW / pixel, 0, 1)[..., None]
    ground_NHW3 = _gradients(draws_NX[:, 4:12], side)
    figure_NHW3 = _figure_colours(draws_NX[:, 12:], ground_NHW3)
    images_NHW3 = cover_NHW1 * figure_NHW3 + (1 - cover_NHW1) * ground_NHW3
    noise = draw_uniform(derive_key(0, "shapes noise", split), rows_N, images_NHW3[0].size)
    images_NHW3 += 0.08 * (noise.reshape(images_NHW3.shape) - 0.5)
    pixels = np.clip(np.rint(255 * images_NHW3), 0, 255).astype(np.uint8)
    index = index_pixels(pixels, f"shapes/{split}")
    return LabelledImages(index, labels_N.astype(np.int64), tuple(SHAPES))


def _gradients(draws_NX: Field, side: Field) -> Field:
    """From one random colour to another along a random direction."""
    angle_N = 2 * np.pi * draws_NX[:, 6]
    slope_NHW = (
        np.cos(angle_N)[:, None, None] * side[None, None, :]
        + np.sin(angle_N)[:, None, None] * side[None, :, None]
    )
    mix_NHW1 = np.clip(0.5 + 0.5 * slope_NHW, 0, 1)[..., None]
    first, second = draws_NX[:, None, None, 0:3], draws_NX[:, None, None, 3:6]
    return np.asarray(mix_NHW1 * first + (1 - mix_NHW1) * second)


def _figure_colours(draws_NX: Field, ground_NHW3: Field) -> Field:
    """A random colour that stands out from the middle of its ground: the farthest of four."""
    ground_N3 = ground_NHW3.mean(axis=(1, 2))
    candidates_N43 = draws_NX[:, :12].reshape(-1, 4, 3)
    contrast_N4 = np.abs(candidates_N43 - ground_N3[:, None]).sum(axis=2)
    chosen_N3 = candidates_N43[np.arange(len(candidates_N43)), contrast_N4.argmax(axis=1)]
    return np.asarray(chosen_N3[:, None, None, :])


def _disc(u: Field, v: Field) -> Field:
    return np.asarray(np.hypot(u, v) - 0.85)


def _ring(u: Field, v: Field) -> Field:
    return np.asarray(np.abs(np.hypot(u, v) - 0.75) - 0.2)


def _square(u: Field, v: Field) -> Field:
    return np.maximum(np.abs(u), np.abs(v)) - 0.75


def _frame(u: Field, v: Field) -> Field:
    return np.abs(np.maximum(np.abs(u), np.abs(v)) - 0.68) - 0.17


def _triangle(u: Field, v: Field) -> Field:
    return np.maximum(np.abs(u) * 0.866 + v * 0.5, -v) - 0.5


def _cross(u: Field, v: Field) -> Field:
    upright = np.maximum(np.abs(u) - 0.28, np.abs(v) - 0.95)
    level = np.maximum(np.abs(u) - 0.95, np.abs(v) - 0.28)
    return np.minimum(upright, level)


def _bar(u: Field, v: Field) -> Field:
    return np.maximum(np.abs(u) - 1.0, np.abs(v) - 0.3)


def _crescent(u: Field, v: Field) -> Field:
    return np.maximum(np.hypot(u, v) - 0.9, 0.75 - np.hypot(u - 0.5, v))


SHAPES: dict[str, Callable[[Field, Field], Field]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "frame": _frame,
    "triangle": _triangle,
    "cross": _cross,
    "bar": _bar,
    "crescent": _crescent,
}
