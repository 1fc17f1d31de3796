"""Pictures with the detail of photographs: JPEGs of 500 x 375 and about 80 kB, like ImageNet's."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def photos(count: int) -> list[bytes]:
    """JPEG files, the same in every run."""
    random = np.random.default_rng(0)
    return [_photo(random) for _ in range(count)]


def write_photos(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number, content in enumerate(photos(count)):
        (folder / f"{number:05}.jpg").write_bytes(content)


def _photo(random: np.random.Generator) -> bytes:
    coarse = Image.fromarray(random.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
    fine = random.normal(0, 14, (188, 250, 3)).astype(np.float32).repeat(2, 0).repeat(2, 1)
    pixels = np.clip(smooth + fine[:375, :500], 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()
