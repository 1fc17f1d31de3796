"""Draw the embedded data set, `shapes`.

Eight kinds of shape in random colours, places, sizes and turns lie over random gradients, so that
neither colour nor brightness nor raw pixels tell a class.

N images, V values drawn for an image.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from and_dist.data.index import LabelledImages, index_pixels
from and_dist.utils.counter_random import derive_key, draw_uniform

Field = NDArray[np.float64]
"""An array of float64, such as coordinates or distances [N, H, W]."""


SHAPES_SIDE = 32
"""Height and width of the images."""


SHAPES_COUNT = {"train": 2000, "test": 500}
"""The number of images of each split."""


def draw_shapes(split: str, count: int) -> LabelledImages:
    """Return the first `count` images of a split, with labels.

    An image is a function of its split and row.
    """
    rows_N = np.arange(count)
    draws_NV = draw_uniform(derive_key(0, "shapes", split), rows_N, 24)
    labels_N = rows_N % len(SHAPES)
    side = np.linspace(-1, 1, SHAPES_SIDE)
    centre_N2 = 0.3 * (2 * draws_NV[:, 0:2] - 1)
    radius_N = 0.45 + 0.25 * draws_NV[:, 2]
    turn_N = 2 * np.pi * draws_NV[:, 3]
    x_NHW = (side[None, None, :] - centre_N2[:, 0, None, None]) / radius_N[:, None, None]
    y_NHW = (side[None, :, None] - centre_N2[:, 1, None, None]) / radius_N[:, None, None]
    cos, sin = np.cos(turn_N)[:, None, None], np.sin(turn_N)[:, None, None]
    u_NHW, v_NHW = cos * x_NHW + sin * y_NHW, cos * y_NHW - sin * x_NHW
    distance_NHW = np.empty_like(u_NHW)
    for label, shape in enumerate(SHAPES.values()):
        is_label = labels_N == label
        distance_NHW[is_label] = shape(u_NHW[is_label], v_NHW[is_label])
    pixel = 2 / SHAPES_SIDE / radius_N[:, None, None]
    # Half a pixel on each side of an outline is blended, which antialiases it.
    cover_NHW1 = np.clip(0.5 - distance_NHW / pixel, 0, 1)[..., None]
    ground_NHW3 = _gradients(draws_NV[:, 4:12], side)
    figure_NHW3 = _figure_colours(draws_NV[:, 12:], ground_NHW3)
    images_NHW3 = cover_NHW1 * figure_NHW3 + (1 - cover_NHW1) * ground_NHW3
    noise = draw_uniform(derive_key(0, "shapes noise", split), rows_N, images_NHW3[0].size)
    images_NHW3 += 0.08 * (noise.reshape(images_NHW3.shape) - 0.5)
    pixels = np.clip(np.rint(255 * images_NHW3), 0, 255).astype(np.uint8)
    index = index_pixels(pixels, f"shapes/{split}")
    return LabelledImages(index, labels_N.astype(np.int64), tuple(SHAPES))


def _gradients(draws_NV: Field, side: Field) -> Field:
    """Return grounds [N, H, W, 3] from one random colour to another in a random direction."""
    angle_N = 2 * np.pi * draws_NV[:, 6]
    slope_NHW = (
        np.cos(angle_N)[:, None, None] * side[None, None, :]
        + np.sin(angle_N)[:, None, None] * side[None, :, None]
    )
    mix_NHW1 = np.clip(0.5 + 0.5 * slope_NHW, 0, 1)[..., None]
    first, second = draws_NV[:, None, None, 0:3], draws_NV[:, None, None, 3:6]
    return np.asarray(mix_NHW1 * first + (1 - mix_NHW1) * second)


def _figure_colours(draws_NV: Field, ground_NHW3: Field) -> Field:
    """Return colours [N, 1, 1, 3]: of four random ones the farthest from the ground's mean."""
    ground_N3 = ground_NHW3.mean(axis=(1, 2))
    candidates_N43 = draws_NV[:, :12].reshape(-1, 4, 3)
    contrast_N4 = np.abs(candidates_N43 - ground_N3[:, None]).sum(axis=2)
    chosen_N3 = candidates_N43[np.arange(len(candidates_N43)), contrast_N4.argmax(axis=1)]
    return np.asarray(chosen_N3[:, None, None, :])


def _disc(u: Field, v: Field) -> Field:
    """Return the distance from the outline of a disc, negative inside."""
    return np.asarray(np.hypot(u, v) - 0.85)


def _ring(u: Field, v: Field) -> Field:
    """Return the distance from the outline of a ring, negative inside."""
    return np.asarray(np.abs(np.hypot(u, v) - 0.75) - 0.2)


def _square(u: Field, v: Field) -> Field:
    """Return the distance from the outline of a square, negative inside."""
    return np.maximum(np.abs(u), np.abs(v)) - 0.75


def _frame(u: Field, v: Field) -> Field:
    """Return the distance from the outline of a square frame, negative inside."""
    return np.abs(np.maximum(np.abs(u), np.abs(v)) - 0.68) - 0.17


def _triangle(u: Field, v: Field) -> Field:
    """Return the distance from the outline of a triangle, negative inside."""
    return np.maximum(np.abs(u) * 0.866 + v * 0.5, -v) - 0.5


def _cross(u: Field, v: Field) -> Field:
    """Return the distance from the outline of a cross, negative inside."""
    upright = np.maximum(np.abs(u) - 0.28, np.abs(v) - 0.95)
    level = np.maximum(np.abs(u) - 0.95, np.abs(v) - 0.28)
    return np.minimum(upright, level)


def _bar(u: Field, v: Field) -> Field:
    """Return the distance from the outline of a bar, negative inside."""
    return np.maximum(np.abs(u) - 1.0, np.abs(v) - 0.3)


def _crescent(u: Field, v: Field) -> Field:
    """Return the distance from the outline of a crescent, negative inside."""
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
"""Classes and their outlines, as functions of coordinates in units of the figure's radius."""
