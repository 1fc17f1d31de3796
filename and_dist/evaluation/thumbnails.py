"""Read whole images as small pictures for people to look at. No torch.

An encoder sees a crop of each image in its own size; image_reader loads those.
"""

from __future__ import annotations

import io
import warnings

from PIL import Image

from and_dist.data.encoded_images import make_decodable
from and_dist.data.image_headers import upright
from and_dist.data.index import ImageIndex
from and_dist.data.stores import Box, FileStore, MemoryStore
from and_dist.data.transcode import to_rgb


def read_thumbnail(index: ImageIndex, row: int, side: int) -> Image.Image | None:
    """Return an image of an index, upright and in RGB, whose longer side has `side` pixels.

    Return None if the image cannot be read.
    """
    try:
        return scale(_read(index, row, side), side)
    except Exception:  # a decoder may raise anything at a broken file
        return None


def scale(image: Image.Image, side: int) -> Image.Image:
    """Return an image in the same shape whose longer side has `side` pixels."""
    factor = side / max(image.size)
    width, height = (max(1, round(length * factor)) for length in image.size)
    is_smaller = factor < 1
    resample = Image.Resampling.LANCZOS if is_smaller else Image.Resampling.BICUBIC
    # Reducing by a whole factor first is several times faster, and not seen at a gap of 3.
    return image.resize((width, height), resample, reducing_gap=3 if is_smaller else None)


def _read(index: ImageIndex, row: int, side: int) -> Image.Image:
    """Return an image in RGB, perhaps shrunk to at least twice `side` by its decoder."""
    store = index.store
    height, width = int(index.heights_N[row]), int(index.widths_N[row])
    if store.kind == "pixels":
        assert not isinstance(store, FileStore)
        return Image.fromarray(store.fetch(row, Box(0, 0, height, width)))
    assert not isinstance(store, MemoryStore)
    encoded = make_decodable(store.read(row), height, width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(encoded)) as image:
            if image.format == "JPEG":
                image.draft("RGB", (2 * side, 2 * side))
            return to_rgb(upright(image))
