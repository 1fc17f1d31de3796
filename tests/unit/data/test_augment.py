"""Augmentation parameters against torchvision's own transforms and distributions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from and_dist.config.schema import DataConfig
from and_dist.data.augment import (
    CENTRE,
    CORNERS,
    AffineMaps,
    JitterSteps,
    Views,
    _affine_maps,
    _jitter_steps,
    hue_rotation,
    plain_views,
    published_views,
    training_views,
)
from and_dist.data.loader import RandomViews
from and_dist.data.order import Rows

ROWS = np.arange(4000)


def views_of(config: DataConfig, epoch: int = 0, height: int = 375, width: int = 500) -> Views:
    sides = np.full(len(ROWS), height, np.int32), np.full(len(ROWS), width, np.int32)
    return training_views(config, 0, epoch, ROWS, *sides)


@pytest.mark.parametrize("random_views", [training_views, published_views])
def test_parameters_follow_from_seed_epoch_and_row(random_views: RandomViews) -> None:
    config = DataConfig(flip=True, image_size=224, test_resize=256)
    some = np.array([17, 3999, 4])

    def views_of_rows(rows: Rows, seed: int = 0, epoch: int = 0) -> Views:
        sizes = np.full(len(rows), 375, np.int32), np.full(len(rows), 500, np.int32)
        return random_views(config, seed, epoch, rows, *sizes)

    all_rows, alone = views_of_rows(ROWS), views_of_rows(some)
    for one, of_all in ((alone, all_rows), (alone.colours, all_rows.colours)):
        for name in set(getattr(one, "__dataclass_fields__", ())) - {"colours"}:
            np.testing.assert_array_equal(getattr(one, name), getattr(of_all, name)[some])
    for other in (views_of_rows(ROWS, epoch=1), views_of_rows(ROWS, seed=1)):
        ours, theirs = (v.start_B2 + v.roi_start_B2 for v in (all_rows, other))
        assert (ours == theirs).all(axis=1).mean() < 0.05


@pytest.mark.parametrize(
    ("height", "width", "side", "resize"),
    [
        (375, 500, 224, 256),
        (500, 333, 224, 256),
        (256, 256, 224, 256),
        (100, 1000, 224, 256),
        (32, 32, 32, 36),
        (47, 33, 32, 36),
        (32, 32, 32, 32),
    ],
)
def test_published_crops_are_those_of_torchvisions_resize_and_random_crop(
    height: int, width: int, side: int, resize: int
) -> None:
    """Regions are whole pixels of the resized image within one; every place is as frequent."""
    config = DataConfig(image_size=side, test_resize=resize)
    sides = np.full(len(ROWS), height, np.int32), np.full(len(ROWS), width, np.int32)
    views = published_views(config, 0, 0, ROWS, *sides)
    assert (views.start_B2 == 0).all()
    assert (views.shape_B2 == [height, width]).all()
    assert (views.roi_start_B2 >= 0).all()
    assert (views.roi_stop_B2 <= np.float32([height, width])).all()
    resized = v2.functional.resize(torch.empty(3, height, width), [resize])
    scale_2 = np.array(resized.shape[1:]) / [height, width]
    starts_B2, stops_B2 = views.roi_start_B2 * scale_2, views.roi_stop_B2 * scale_2
    places_B2 = np.rint(starts_B2)
    assert np.abs(starts_B2 - places_B2).max() < 1
    assert np.abs(stops_B2 - places_B2 - side).max() < 1
    torch.manual_seed(0)
    crop = v2.RandomCrop(side)
    drawn = [crop.make_params([resized]) for _ in ROWS]
    free_2 = np.array(resized.shape[1:]) - side
    for axis, key in enumerate(("top", "left")):
        theirs = np.array([params[key] for params in drawn])
        ours, free = places_B2[:, axis], free_2[axis]
        assert (ours.min(), ours.max()) == (0, free)
        assert ours.mean() == pytest.approx(theirs.mean(), abs=0.02 * free)
        assert ours.std() == pytest.approx(theirs.std(), abs=0.02 * free)


@pytest.mark.parametrize("flip", [False, True])
def test_half_of_the_published_crops_are_mirrored_and_keep_their_colours(flip: bool) -> None:
    """As published, whatever the encoder was trained on."""
    no_colours = {"jitter": 0.0, "hue": 0.0, "grayscale": 0.0}
    config = DataConfig(flip=flip, image_size=32, test_resize=36, **no_colours)
    sides = np.full(len(ROWS), 32, np.int32), np.full(len(ROWS), 32, np.int32)
    views = published_views(config, 0, 0, ROWS, *sides)
    assert views.flip_B.mean() == pytest.approx(0.5, abs=0.03)
    assert isinstance(views.colours, AffineMaps)
    same_B33 = np.tile(np.eye(3), (len(ROWS), 1, 1))
    np.testing.assert_allclose(views.colours.direct_B33, same_B33, atol=1e-6)
    assert np.abs(views.colours.through_mean_B33).max() < 1e-7


@pytest.mark.parametrize(("height", "width"), [(375, 500), (32, 32), (40, 1000), (1, 1)])
def test_crops_are_distributed_as_torchvisions(height: int, width: int) -> None:
    """Mean and deviation of area, ratio and place within 5 % of the range; always inside."""
    ours = views_of(DataConfig(), height=height, width=width)
    assert (ours.start_B2 >= 0).all()
    assert (ours.start_B2 + ours.shape_B2 <= [height, width]).all()
    image = torch.empty(3, height, width)
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(224, scale=(0.2, 1.0))
    draws = [crop.make_params([image]) for _ in range(4000)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in draws])
    both = np.concatenate([ours.start_B2, ours.shape_B2], axis=1), theirs
    for column, side in enumerate((height, width, height, width)):
        mine, other = both[0][:, column] / side, both[1][:, column] / side
        assert mine.mean() == pytest.approx(other.mean(), abs=0.02)
        assert mine.std() == pytest.approx(other.std(), abs=0.02)


def test_both_hue_models_take_the_same_draws() -> None:
    yiq, hsv = views_of(DataConfig()), views_of(DataConfig(hue_model="hsv"))
    assert isinstance(hsv.colours, JitterSteps)
    maps = _affine_maps(hsv.colours, grayscale_first=False)
    np.testing.assert_array_equal(maps.direct_B33, yiq.colours.direct_B33)
    np.testing.assert_array_equal(maps.through_mean_B33, yiq.colours.through_mean_B33)
    for name in set(Views.__dataclass_fields__) - {"colours"}:
        np.testing.assert_array_equal(getattr(hsv, name), getattr(yiq, name))


def colour(image_HW3: np.ndarray, maps: AffineMaps) -> np.ndarray:
    mean_3 = image_HW3.mean(axis=(0, 1))
    return image_HW3 @ maps.direct_B33[0].T + maps.through_mean_B33[0] @ mean_3


def maps_of(**draws: float) -> AffineMaps:
    """Colour maps for chosen draws; without a choice, a step does nothing."""
    order = draws.get("order", (0.1, 0.2, 0.3, 0.4))
    row = [*order, *(draws.get(name, 0.5) for name in ("b", "c", "s", "h")), draws.get("g", 0.9), 0]
    return _affine_maps(_jitter_steps(DataConfig(), np.array([row])), grayscale_first=False)


IMAGE = np.random.default_rng(0).integers(60, 170, (16, 16, 3)).astype(np.float64)
TENSOR = torch.from_numpy(IMAGE.transpose(2, 0, 1) / 255)


@pytest.mark.parametrize(
    ("draws", "transform"),
    [
        ({"b": 1.0}, lambda t: tv.adjust_brightness(t, 1.4)),
        ({"c": 0.0}, lambda t: tv.adjust_contrast(t, 0.6)),
        ({"c": 1.0}, lambda t: tv.adjust_contrast(t, 1.4)),
        ({"s": 0.0}, lambda t: tv.adjust_saturation(t, 0.6)),
        ({"s": 1.0}, lambda t: tv.adjust_saturation(t, 1.4)),
        ({"g": 0.1}, lambda t: tv.rgb_to_grayscale(t, 3)),
        (
            {"b": 0.75, "c": 0.0, "s": 1.0, "g": 0.1},
            lambda t: tv.rgb_to_grayscale(
                tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(t, 1.2), 0.6), 1.4), 3
            ),
        ),
        (
            {"b": 0.25, "c": 1.0, "order": (0.4, 0.3, 0.2, 0.1)},
            lambda t: tv.adjust_brightness(tv.adjust_contrast(t, 1.4), 0.8),
        ),
    ],
)
def test_colour_maps_are_torchvisions_within_2_levels(
    draws: dict[str, Any], transform: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    ours = colour(IMAGE, maps_of(**draws))
    theirs = 255 * transform(TENSOR).numpy().transpose(1, 2, 0)
    assert np.abs(np.clip(ours, 0, 255) - theirs).max() < 2


def test_hue_turns_the_way_torchvision_turns() -> None:
    """YIQ rotation is no HSV rotation: seen 14 levels on average at 1/12, of 61 that move."""
    ours = np.clip(IMAGE @ hue_rotation(np.array([1 / 12]))[0].T, 0, 255)
    theirs = 255 * tv.adjust_hue(TENSOR, 1 / 12).numpy().transpose(1, 2, 0)
    backwards = 255 * tv.adjust_hue(TENSOR, -1 / 12).numpy().transpose(1, 2, 0)
    assert np.abs(ours - theirs).mean() < 0.5 * np.abs(ours - backwards).mean()


def test_grayscale_may_come_first() -> None:
    draws = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.9, 0.1, 0]])
    gray = colour(IMAGE, _affine_maps(_jitter_steps(DataConfig(), draws), grayscale_first=True))
    np.testing.assert_allclose(gray, gray[..., :1].repeat(3, axis=2), atol=1e-4)


def test_a_fifth_is_gray_and_half_are_mirrored() -> None:
    views = views_of(DataConfig(flip=True, jitter=0.0, hue=0.0))
    is_gray = np.abs(views.colours.direct_B33 - np.eye(3)).max(axis=(1, 2)) > 0.1
    assert is_gray.mean() == pytest.approx(0.2, abs=0.02)
    assert views.flip_B.mean() == pytest.approx(0.5, abs=0.03)
    assert not views_of(DataConfig(flip=False)).flip_B.any()


def test_the_test_view_is_the_centre_of_the_resized_image() -> None:
    config = DataConfig(image_size=224, test_resize=256)
    views = plain_views(config, np.array([512], np.int32), np.array([1024], np.int32))
    assert views.roi_start_B2.tolist() == [[32, 288]]
    assert views.roi_stop_B2.tolist() == [[480, 736]]


def test_the_corners_are_those_of_torchvisions_ten_crops() -> None:
    """Of 256 x 512 pixels, which are not resized then: to the pixel."""
    config = DataConfig(image_size=224, test_resize=256)
    image = torch.arange(3 * 256 * 512).reshape(3, 256, 512)
    expected = tv.ten_crop(image, [224, 224])[:5]
    sides = np.array([256], np.int32), np.array([512], np.int32)
    for place, crop in zip((*CORNERS, CENTRE), expected, strict=True):
        views = plain_views(config, *sides, place)
        (top, left), (bottom, right) = (
            corner.astype(int).tolist() for corner in (views.roi_start_B2[0], views.roi_stop_B2[0])
        )
        assert torch.equal(image[:, top:bottom, left:right], crop), place
