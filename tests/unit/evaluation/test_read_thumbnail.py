"""Whole images as small pictures, of every form that a user may have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from and_dist.data.datasets import index_named
from and_dist.data.index import index_pixels
from and_dist.evaluation.source_pictures import read_thumbnail
from tests.pictures import cut_pixels, noise, oriented, picture, save

SIDE = 120


def thumbnail(path: Path) -> Image.Image:
    found = read_thumbnail(index_named([path]).index, 0, SIDE)
    assert found is not None
    assert found.mode == "RGB"
    return found


def distance(one: Image.Image, other: Image.Image) -> float:
    assert one.size == other.size
    return float(np.abs(np.asarray(one).astype(int) - np.asarray(other)).mean())


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 1), (120, 120)),
        ((32, 32), (120, 120)),
        ((640, 480), (120, 90)),
        ((3000, 20), (120, 1)),
        ((20, 3000), (1, 120)),
    ],
)
def test_the_longer_side_fits_and_the_shape_stays(
    size: tuple[int, int], expected: tuple[int, int], tmp_path: Path
) -> None:
    assert thumbnail(save(tmp_path / "a.png", picture(0, size))).size == expected


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_megapixels_are_resized_as_well_as_at_once(suffix: str, tmp_path: Path) -> None:
    """Fine stripes become gray, and do not show as coarse ones."""
    stripes = np.zeros((1500, 2000, 3), np.uint8)
    stripes[:, ::2] = 255
    stripes[:, 1000:] = np.asarray(picture(3, (1000, 1500)))
    image = Image.fromarray(stripes)
    found = thumbnail(save(tmp_path / f"a.{suffix}", image))
    assert distance(found, image.resize((120, 90), Image.Resampling.LANCZOS)) < 2


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_images_are_turned_upright(turn: int, suffix: str, tmp_path: Path) -> None:
    from PIL import ImageOps

    path = save(tmp_path / f"a.{suffix}", picture(turn, (96, 64)), exif=oriented(turn))
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
    long_side = max(upright.size)
    size = (120 * upright.width // long_side, 120 * upright.height // long_side)
    assert distance(thumbnail(path), upright.resize(size, Image.Resampling.BICUBIC)) < 1


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_is_shown_in_its_colours(mode: str, tmp_path: Path) -> None:
    image = picture(5, (60, 60)).convert(mode)
    path = save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), image)
    as_rgb = image.convert("RGB").resize((120, 120), Image.Resampling.BICUBIC)
    assert distance(thumbnail(path), as_rgb) < 1


def test_16_bits_are_scaled_and_not_cut_off(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 120).astype(np.uint16)[None].repeat(120, axis=0)
    found = np.asarray(thumbnail(save(tmp_path / "a.png", Image.fromarray(ramp))))
    np.testing.assert_allclose(found[60, :, 0], ramp[0] / 257, atol=2)


def test_pixels_need_no_decoder() -> None:
    pixels = noise(0, (2, 24, 24, 3))
    found = read_thumbnail(index_pixels(pixels, "x"), 1, SIDE)
    assert found is not None
    expected = Image.fromarray(pixels[1]).resize((120, 120), Image.Resampling.BICUBIC)
    assert distance(found, expected) == 0


def test_an_image_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", picture(0, (200, 200)))
    index = index_named([path]).index
    cut_pixels(path)
    assert read_thumbnail(index, 0, SIDE) is None
    path.write_bytes(b"no image")
    assert read_thumbnail(index, 0, SIDE) is None
    path.unlink()
    assert read_thumbnail(index, 0, SIDE) is None
