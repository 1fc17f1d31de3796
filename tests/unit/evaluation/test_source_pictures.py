"""Pictures from the files of a data set, beside what Pillow makes of the same files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from and_dist.config.schema import DataConfig
from and_dist.data.datasets import index_folder
from and_dist.data.index import index_pixels
from and_dist.evaluation.source_pictures import load_seen_part, load_thumbnails
from tests.pictures import cut_pixels, noise, oriented, picture, save

STRIPES = np.zeros((300, 400, 3), np.uint8)
"""An image whose stripes of 8 pixels are lost at a side of 32 pixels, and are not at 100."""
STRIPES[:, np.arange(400) // 8 % 2 == 1] = 255


def contrast(image: Image.Image) -> float:
    return float(np.asarray(image.convert("L"), float).std())


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_thumbnail_has_what_the_network_does_not_see(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / f"0.{suffix}", Image.fromarray(STRIPES))
    found = load_thumbnails(index_folder(tmp_path).index, [0], 104)
    assert found[0].size == (104, 78)
    seen = Image.fromarray(STRIPES).resize((32, 32), Image.Resampling.BILINEAR).resize((104, 78))
    assert contrast(found[0]) > 2 * contrast(seen)


def test_thumbnails_stand_upright_and_small_ones_keep_their_size(tmp_path: Path) -> None:
    save(tmp_path / "0.jpg", picture(0, (300, 200)), exif=oriented(6))
    small = picture(1, (28, 20))
    save(tmp_path / "1.png", small)
    found = load_thumbnails(index_folder(tmp_path).index, [0, 1], 90)
    assert found[0].size == (60, 90)
    assert np.array_equal(np.asarray(found[1]), np.asarray(small))


def test_pixels_in_memory_are_pictures_too() -> None:
    images_NHWC = noise(0, (3, 32, 32, 3))
    found = load_thumbnails(index_pixels(images_NHWC, "here"), [2, 0], 104)
    assert all(np.array_equal(np.asarray(found[row]), images_NHWC[row]) for row in (0, 2))
    large = load_thumbnails(index_pixels(images_NHWC, "here"), [1], 16)
    assert large[1].size == (16, 16)


def test_unreadable_and_changed_images_are_left_out(tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path / f"{number}.jpg", picture(number, (64, 48)))
    index = index_folder(tmp_path).index
    cut_pixels(tmp_path / "0.jpg")
    (tmp_path / "1.jpg").unlink()
    save(tmp_path / "2.jpg", picture(9, (48, 64)))
    assert list(load_thumbnails(index, range(4), 32)) == [3]
    assert load_seen_part(index, 1, DataConfig(), 32) is None


def test_the_seen_part_is_the_crop_of_the_test_images() -> None:
    """A quarter of the sides is cut off, an eighth at each end."""
    images_NHWC = np.zeros((1, 200, 400, 3), np.uint8)
    images_NHWC[0, 25:175, 125:275] = 255
    index = index_pixels(images_NHWC, "here")
    cropped = DataConfig(image_size=48, test_resize=64)
    assert np.asarray(load_seen_part(index, 0, cropped, 112)).min() > 200
    whole = load_seen_part(index, 0, DataConfig(image_size=48), 112)
    assert whole is not None
    assert whole.size == (112, 112)
    assert np.asarray(whole)[50, 3].max() == 0


def test_small_images_are_enlarged_to_whole_squares() -> None:
    images_NHWC = noise(0, (1, 28, 28, 3))
    enlarged = load_seen_part(index_pixels(images_NHWC, "here"), 0, DataConfig(), 104)
    assert np.array_equal(np.asarray(enlarged), images_NHWC[0].repeat(4, 0).repeat(4, 1))
