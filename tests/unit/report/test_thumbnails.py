"""Pictures as data URIs: their sizes, and those that are small."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from and_dist.report import thumbnails
from and_dist.report.thumbnails import LARGEST, encode_all
from tests.pictures import noise, picture


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


def test_small_images_keep_their_colours_to_the_pixel() -> None:
    """An outline of one pixel, which WebP at its own size would smear over its neighbours."""
    pixels = np.zeros((28, 28, 3), np.uint8)
    pixels[:, :, 1] = 200
    pixels[:, 14] = (255, 0, 255)
    found = encode_all({"r0": Image.fromarray(pixels)})
    assert found.crisp == {"r0"}
    shown = np.asarray(decoded(found.uris["r0"]))
    assert shown.shape == (56, 56, 3)
    assert np.abs(shown[::2, ::2].astype(int) - pixels).max(axis=(0, 2))[14] < 80
    assert np.abs(shown[::2, ::2].astype(int) - pixels).mean() < 10


def test_photos_are_smooth_and_as_large_as_they_are_shown() -> None:
    found = encode_all({"r0": picture(0, (104, 70)), "r1": picture(1, (32, 20))})
    assert found.crisp == {"r1"}
    assert decoded(found.uris["r0"]).size == (LARGEST, 70)


def test_many_pictures_are_smaller_and_then_none_is_crisp(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = {f"r{n}": Image.fromarray(noise(n, (48, 48, 3))) for n in range(4)}
    whole = encode_all(pictures)
    assert whole.crisp == pictures.keys()
    monkeypatch.setattr(thumbnails, "MOST_BYTES", sum(map(len, whole.uris.values())) // 6)
    fewer = encode_all(pictures)
    assert fewer.crisp == frozenset()
    assert max(decoded(fewer.uris["r0"]).size) < 48


def test_the_size_of_many_is_estimated_from_few(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = {f"r{n}": Image.fromarray(noise(n, (40, 40, 3))) for n in range(12)}
    whole = sum(map(len, encode_all(pictures).uris.values()))
    monkeypatch.setattr(thumbnails, "SAMPLE", 3)
    monkeypatch.setattr(thumbnails, "MOST_BYTES", whole // 4)
    found = encode_all(pictures)
    assert found.uris.keys() == pictures.keys()
    assert sum(map(len, found.uris.values())) <= whole // 4
