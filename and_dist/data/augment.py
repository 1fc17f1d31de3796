"""Compute the crop, changes of colour and flip of each image as a function of (seed, epoch, row).

They are numbers: DALI's operators take the crop and the flip, and torch applies the changes of
colour. These have two models, of the same draws. With data.hue_model=hsv they are torchvision's
steps, which hsv_jitter.py applies one after another.

With data.hue_model=yiq, brightness, contrast, saturation, hue and grayscale are linear maps of a
pixel's colour, contrast with an offset proportional to the image's mean colour. In any order they
therefore compose into one map, which colour.py applies: colour -> direct @ colour + through_mean @
mean colour. Two things differ from torchvision: hue is a rotation of the YIQ chroma plane instead
of a shift along HSV's hexagon, and nothing is clipped between the steps.

B images of a batch, V values drawn for an image, X attempts at a crop; boxes are (y, x) in pixels
of the stored image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from and_dist.config.schema import DataConfig
from and_dist.data.order import Rows
from and_dist.utils.counter_random import derive_key, draw_uniform

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

ATTEMPTS = 10
"""The number of boxes that are drawn for a crop, as in torchvision."""
RATIO = (3 / 4, 4 / 3)
"""The smallest and largest width / height of a crop, as in torchvision."""
LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the luma of a pixel."""
TO_GRAY = np.tile(LUMA, (3, 1))
TO_YIQ = np.array([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
FROM_YIQ = np.linalg.inv(TO_YIQ)


BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Numbers of the steps of colour jitter."""


@dataclass(frozen=True)
class JitterSteps:
    """Hold the steps that change the colours of each image of a batch, as they were drawn."""

    order_B4: I64
    """BRIGHTNESS, CONTRAST, SATURATION and HUE in the order in which the image takes them."""
    factors_B3: F64
    """Factors of brightness, contrast and saturation."""
    shift_B: F64
    """Change of hue, as a share of the colour circle."""
    is_gray_B: NDArray[np.bool_]
    """Whether the image is made gray."""


@dataclass(frozen=True)
class AffineMaps:
    """Hold the one map that all steps of an image compose into, for each image of a batch."""

    direct_B33: F32
    """Matrix that a pixel's colour (0..255) is multiplied by."""
    through_mean_B33: F32
    """Matrix that the image's mean colour is multiplied by before it is added."""


@dataclass(frozen=True)
class Views:
    """Hold the crop, changes of colour and flip of each image of a batch."""

    start_B2: I32
    """Upper left corner of the box that is decoded."""
    shape_B2: I32
    """Height and width of that box."""
    roi_start_B2: F32
    """Region of that box that becomes the image, in pixels of the box, fractions allowed."""
    roi_stop_B2: F32
    """End of that region."""
    flip_B: I32
    """1 where the image is mirrored, else 0."""
    colours: AffineMaps | JitterSteps | None
    """Changes of colour in the form that data.hue_model asks for; none for plain views."""

    def part(self, at: int) -> Views:
        """Return the views of the image at position `at` alone, without changes of colour."""
        one = slice(at, at + 1)
        boxes = (
            self.start_B2[one],
            self.shape_B2[one],
            self.roi_start_B2[one],
            self.roi_stop_B2[one],
        )
        return Views(*boxes, self.flip_B[one], None)


def training_views(
    config: DataConfig, seed: int, epoch: int, rows_B: Rows, heights_B: I32, widths_B: I32
) -> Views:
    """Return the random resized crop, changes of colour and flip of rows in this epoch."""
    key = derive_key(seed, "augment", epoch)
    draws_BV = draw_uniform(key, rows_B, 2 * ATTEMPTS + 12)
    crops_BV, place_B2, colours_BV = np.split(draws_BV, [2 * ATTEMPTS, 2 * ATTEMPTS + 2], axis=1)
    sides_B2 = np.stack([heights_B, widths_B], axis=1)
    start_B2, shape_B2 = _crops(config, crops_BV, place_B2, sides_B2)
    flip_B = (colours_BV[:, 9] < 0.5) & config.flip
    return Views(
        start_B2,
        shape_B2,
        np.zeros(shape_B2.shape, np.float32),
        shape_B2.astype(np.float32),
        flip_B.astype(np.int32),
        _changes_of_colour(config, colours_BV),
    )


CENTRE = (0.5, 0.5)
CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
"""Places of plain_views, as shares of the margin (y, x)."""


def plain_views(
    config: DataConfig, heights_B: I32, widths_B: I32, place: tuple[float, float] | F64 = CENTRE
) -> Views:
    """Return views of a crop of the resized image, without changes of colour or flip.

    `place` is the share of the margin that lies above and to the left of the crop: CENTRE, one of
    CORNERS, or one share [B, 2] for each image. If `test_resize` is None, the view is the whole
    image.
    """
    sides_B2 = np.stack([heights_B, widths_B], axis=1).astype(np.float64)
    if config.test_resize is None:
        region_B2 = sides_B2
    else:
        side = config.image_size / config.test_resize * sides_B2.min(axis=1, keepdims=True)
        region_B2 = np.minimum(side, sides_B2)
    margin_B2 = (sides_B2 - region_B2) * place
    count = len(heights_B)
    return Views(
        np.zeros((count, 2), np.int32),
        sides_B2.astype(np.int32),
        margin_B2.astype(np.float32),
        (margin_B2 + region_B2).astype(np.float32),
        np.zeros(count, np.int32),
        None,
    )


def published_views(
    config: DataConfig, seed: int, epoch: int, rows_B: Rows, heights_B: I32, widths_B: I32
) -> Views:
    """Return a random crop of the resized image, changes of colour, and a flip of every second one.

    These are the images of published linear classifiers, by torchvision's Resize and RandomCrop: as
    there, a crop begins at a whole pixel of the image that was resized to `test_resize`.
    """
    assert config.test_resize is not None
    draws_BV = draw_uniform(derive_key(seed, "published crops", epoch), rows_B, 12)
    sides_B2 = np.stack([heights_B, widths_B], axis=1).astype(np.int64)
    resized_B2 = sides_B2 * config.test_resize // sides_B2.min(axis=1, keepdims=True)
    free_B2 = np.maximum(resized_B2 - config.image_size, 0)
    start_B2 = np.floor(draws_BV[:, :2] * (free_B2 + 1))
    views = plain_views(config, heights_B, widths_B, start_B2 / np.maximum(free_B2, 1))
    return replace(
        views,
        flip_B=(draws_BV[:, 2] < 0.5).astype(np.int32),
        colours=_changes_of_colour(config, draws_BV[:, 3:]),
    )


def _crops(config: DataConfig, draws_BV: F64, place_B2: F64, sides_B2: I32) -> tuple[I32, I32]:
    """Return (start [B, 2], shape [B, 2]) of the boxes of torchvision's RandomResizedCrop.

    The first of ATTEMPTS draws of area and ratio that fits the image is placed at random. If none
    fits, the box is the largest in the middle of the image within the allowed ratios.
    """
    low, high = config.crop_area
    area_B1 = sides_B2.prod(axis=1, dtype=np.float64)[:, None]
    area_BX = area_B1 * (low + (high - low) * draws_BV[:, :ATTEMPTS])
    log_low, log_high = np.log(RATIO[0]), np.log(RATIO[1])
    ratio_BX = np.exp(log_low + (log_high - log_low) * draws_BV[:, ATTEMPTS:])
    attempts_BX2 = np.rint(np.sqrt(np.stack([area_BX / ratio_BX, area_BX * ratio_BX], axis=2)))
    fits_BX = np.all((attempts_BX2 >= 1) & (attempts_BX2 <= sides_B2[:, None]), axis=2)
    first_B2 = attempts_BX2[np.arange(len(attempts_BX2)), fits_BX.argmax(axis=1)]
    height_B, width_B = sides_B2.T
    fallback_B2 = np.stack(
        [
            np.clip(np.rint(width_B / RATIO[0]), 1, height_B),
            np.clip(np.rint(height_B * RATIO[1]), 1, width_B),
        ],
        axis=1,
    )
    found_B1 = fits_BX.any(axis=1, keepdims=True)
    shape_B2 = np.where(found_B1, first_B2, fallback_B2)
    free_B2 = sides_B2 - shape_B2
    start_B2 = np.where(found_B1, np.floor(place_B2 * (free_B2 + 1)), free_B2 // 2)
    return start_B2.astype(np.int32), shape_B2.astype(np.int32)


def _changes_of_colour(config: DataConfig, draws_BV: F64) -> AffineMaps | JitterSteps:
    """Return jitter and grayscale in the form that data.hue_model asks for."""
    steps = _jitter_steps(config, draws_BV)
    return steps if config.hue_model == "hsv" else _affine_maps(steps, config.grayscale_first)


def _jitter_steps(config: DataConfig, draws_BV: F64) -> JitterSteps:
    """Return the steps of colour jitter in random order, and who is made gray."""
    return JitterSteps(
        draws_BV[:, 0:4].argsort(axis=1, kind="stable"),
        1 + config.jitter * (2 * draws_BV[:, 4:7] - 1),
        config.hue * (2 * draws_BV[:, 7] - 1),
        draws_BV[:, 8] < config.grayscale,
    )


def _affine_maps(steps: JitterSteps, grayscale_first: bool) -> AffineMaps:
    """Return the maps that jitter and grayscale compose into.

    Grayscale comes before or after the jitter, as `grayscale_first` says.
    """
    brightness, contrast, saturation = steps.factors_B3.T
    count, identity = len(brightness), np.eye(3)
    steps_4B33 = np.stack(
        [
            brightness[:, None, None] * identity,
            contrast[:, None, None] * identity,
            saturation[:, None, None] * identity + (1 - saturation)[:, None, None] * TO_GRAY,
            hue_rotation(steps.shift_B),
        ]
    )
    no_mean_B = np.zeros(count)
    means_4B = np.stack([no_mean_B, 1 - contrast, no_mean_B, no_mean_B])
    image_B = np.arange(count)
    sequence = [(steps_4B33[step, image_B], means_4B[step, image_B]) for step in steps.order_B4.T]
    grayscale_B33 = np.where(steps.is_gray_B[:, None, None], TO_GRAY, identity)
    sequence.insert(0 if grayscale_first else 4, (grayscale_B33, no_mean_B))
    direct_B33 = np.tile(identity, (count, 1, 1))
    through_mean_B33 = np.zeros_like(direct_B33)
    for step_B33, mean_B in sequence:
        # Contrast blends with the mean luma of the image as the steps so far have left it.
        mean_now_B33 = TO_GRAY @ (direct_B33 + through_mean_B33)
        through_mean_B33 = step_B33 @ through_mean_B33 + mean_B[:, None, None] * mean_now_B33
        direct_B33 = step_B33 @ direct_B33
    return AffineMaps(direct_B33.astype(np.float32), through_mean_B33.astype(np.float32))


def hue_rotation(shift_B: F64) -> F64:
    """Return matrices [B, 3, 3] that turn the chroma plane of YIQ by `shift_B` of the full circle.

    A positive shift turns red towards yellow.
    """
    angle_B = -2 * np.pi * shift_B
    rotation_B33 = np.tile(np.eye(3), (len(angle_B), 1, 1))
    rotation_B33[:, 1, 1] = rotation_B33[:, 2, 2] = np.cos(angle_B)
    rotation_B33[:, 1, 2], rotation_B33[:, 2, 1] = -np.sin(angle_B), np.sin(angle_B)
    return np.asarray(FROM_YIQ @ rotation_B33 @ TO_YIQ)
