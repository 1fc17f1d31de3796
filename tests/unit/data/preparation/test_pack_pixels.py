"""--raw: the pixels Pillow decodes, upright, of every mode."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from and_dist.data.transcode import PackOptions
from tests.pictures import files_of, oriented, picture, save
from tests.unit.data.preparing import distance, encoded, pixels, run, sides


@pytest.mark.parametrize("workers", [1, 2])
def test_raw_without_resizing_is_pillows_decode(tmp_path: Path, source: Path, workers: int) -> None:
    images = run(source, tmp_path / "out", PackOptions(raw=70), workers=workers)
    assert [path.name for path in (tmp_path / "out" / "train").glob("0*")] == ["00000.bin"]
    for row, path in enumerate(files_of(source)):
        assert (pixels(images, row) == np.asarray(Image.open(path))).all()


def test_raw_cuts_the_shorter_side_down(tmp_path: Path, source: Path) -> None:
    big = save(source / "c" / "6.jpg", picture(6, (640, 400)), quality=95)
    images = run(source, tmp_path / "out", PackOptions(raw=20))
    expected = [(20, 27), (50, 20), (16, 16), (20, 39), (70, 9), (21, 20), (20, 32)]
    assert sides(images) == expected
    box = Image.open(big).resize((32, 20), Image.Resampling.BICUBIC)
    assert distance(pixels(images, 6), np.asarray(box)) < 3


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_raw_images_a_camera_turned_are_upright(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    path = tmp_path / "source" / f"a.{kind}"
    save(path, picture(1, (30, 20)), exif=oriented(orientation))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    whole = run(tmp_path / "source", tmp_path / "whole", PackOptions(raw=20))
    assert sides(whole) == [upright.shape[:2]]
    assert (pixels(whole, 0) == upright).all()
    half = run(tmp_path / "source", tmp_path / "half", PackOptions(raw=10))
    assert sides(half) == [(upright.shape[0] // 2, upright.shape[1] // 2)]
    packed = run(tmp_path / "source", tmp_path / "packed", PackOptions(pack=True, resize=10))
    assert sides(packed) == sides(half)
    with Image.open(io.BytesIO(encoded(packed)[0])) as image:
        assert image.getexif().get(0x0112, 1) == 1
        assert image.size == sides(half)[0][::-1]


def with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(77)
    return image


SMALL = [picture(seed, (24, 18)) for seed in range(5)]
MODES: dict[str, tuple[Image.Image, dict[str, Any]]] = {
    "palette.png": (SMALL[0].quantize(16), {"transparency": 3}),
    "one-bit.png": (SMALL[1].convert("1"), {}),
    "transparent.png": (with_alpha(SMALL[2]), {}),
    "cmyk.jpg": (SMALL[3].convert("CMYK"), {"quality": 95}),
    "gray.jpg": (SMALL[4].convert("L"), {}),
}


@pytest.mark.parametrize("name", MODES)
def test_raw_makes_rgb_of_every_mode(tmp_path: Path, name: str) -> None:
    image, options = MODES[name]
    path = save(tmp_path / "source" / name, image, **options)
    kept = image if path.suffix == ".png" else Image.open(path)
    expected = np.asarray(kept.convert("RGB"))
    whole = run(tmp_path / "source", tmp_path / "whole", PackOptions(raw=18))
    assert (pixels(whole, 0) == expected).all()
    half = run(tmp_path / "source", tmp_path / "half", PackOptions(raw=9))
    small = Image.fromarray(expected).resize((12, 9), Image.Resampling.BICUBIC)
    assert distance(pixels(half, 0), np.asarray(small)) < 4


RAMP = np.linspace(0, 1, 24 * 18).reshape(18, 24)


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_not_cut(tmp_path: Path, kind: str) -> None:
    values = (65535 * RAMP).astype(np.uint16)
    save(tmp_path / "source" / f"a.{kind}", Image.fromarray(values))
    images = run(tmp_path / "source", tmp_path / "out", PackOptions(raw=18))
    assert (pixels(images, 0) == (values >> 8)[..., None]).all()
    half = run(tmp_path / "source", tmp_path / "half", PackOptions(raw=9))
    small = Image.fromarray((values >> 8).astype(np.uint8)).resize((12, 9))
    assert distance(pixels(half, 0), np.asarray(small)[..., None]) < 4


@pytest.mark.parametrize("options", [PackOptions(), PackOptions(pack=True), PackOptions(raw=18)])
@pytest.mark.parametrize("values", [(255 * RAMP).astype(np.int32), np.float32(RAMP)])
def test_pixels_that_leave_open_what_is_white_are_bad(
    tmp_path: Path, options: PackOptions, values: np.ndarray
) -> None:
    """DALI gives integers of 32 bits up, and takes floats that go to 255 for white."""
    save(tmp_path / "source" / "a.tif", Image.fromarray(values))
    with pytest.raises(ValueError, match=r"a\.tif: its pixels are .*, which leaves open what"):
        run(tmp_path / "source", tmp_path / "out", options)


def test_cmyk_is_the_colour_it_was(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK")
    save(tmp_path / "source" / "red.jpg", red, quality=95)
    images = run(tmp_path / "source", tmp_path / "out", PackOptions(raw=16))
    assert distance(pixels(images, 0), np.array([255, 0, 0])) < 8
