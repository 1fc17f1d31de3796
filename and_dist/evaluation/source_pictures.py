"""Load images by row from where they lie, with all their pixels, as pictures for people.

The network sees them smaller (image_reader).
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import torch
from PIL import Image

from and_dist.config.schema import DataConfig
from and_dist.data.augment import plain_views
from and_dist.data.encoded_images import make_decodable
from and_dist.data.image_headers import (
    RGB_BYTES,
    Unreadable,
    check_pixels,
    most_bytes,
    open_image,
    upright,
)
from and_dist.data.index import ImageIndex
from and_dist.data.stores import Box, FileStore, MemoryStore
from and_dist.data.transcode import to_rgb
from and_dist.utils.room import Room

SMALL = 48
"""The longest side of an image that is enlarged without smoothing, in pixels: its pixels are few,
and each means something."""
DECODED_AT_ONCE = 10**9
"""The most bytes of pixels that threads decode side by side."""


def load_thumbnails(index: ImageIndex, rows: Iterable[int], side: int) -> dict[int, Image.Image]:
    """Return pictures by row, at most `side` pixels high and wide; skip unreadable ones.

    Smaller images keep their size.
    """

    room = Room(DECODED_AT_ONCE)

    def load(row: int) -> Image.Image | None:
        with room.hold(RGB_BYTES * int(index.heights_N[row]) * int(index.widths_N[row])):
            try:
                picture = _load(index, row, side)
            except (Unreadable, OSError):
                return None
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
            return picture

    wanted = list(rows)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        pictures = dict(zip(wanted, threads.map(load, wanted), strict=True))
    return {row: picture for row, picture in pictures.items() if picture is not None}


def read_thumbnail(index: ImageIndex, row: int, side: int) -> Image.Image | None:
    """Return an image whose longer side has `side` pixels, or None if it is unreadable."""
    try:
        return scale(_load(index, row, side), side)
    except (Unreadable, OSError):
        return None


def scale(image: Image.Image, side: int) -> Image.Image:
    """Return an image in the same shape whose longer side has `side` pixels."""
    factor = side / max(image.size)
    width, height = (max(1, round(length * factor)) for length in image.size)
    is_smaller = factor < 1
    resample = Image.Resampling.LANCZOS if is_smaller else Image.Resampling.BICUBIC
    # Reducing by a whole factor first is several times faster, and not seen at a gap of 3.
    return image.resize((width, height), resample, reducing_gap=3 if is_smaller else None)


def load_seen_part(index: ImageIndex, row: int, data: DataConfig, side: int) -> Image.Image | None:
    """Return the part of an image that the network sees, or None if the image is unreadable.

    It is a square, as the network sees it. The side is `side` pixels, or somewhat more for small
    images, whose pixels become whole squares.
    """
    try:
        picture = _load(index, row, 2 * side)
    except (Unreadable, OSError):
        return None
    sides = index.heights_N[row : row + 1], index.widths_N[row : row + 1]
    views, scale = plain_views(data, *sides), picture.width / int(index.widths_N[row])
    top, left = (scale * views.roi_start_B2[0]).tolist()
    bottom, right = (scale * views.roi_stop_B2[0]).tolist()
    longest = round(max(bottom - top, right - left))
    if longest <= SMALL:
        side = longest * -(-side // longest)
    how = Image.Resampling.NEAREST if longest <= SMALL else Image.Resampling.LANCZOS
    box = left, top, min(right, picture.width), min(bottom, picture.height)
    return picture.resize((side, side), how, box=box)


def _load(index: ImageIndex, row: int, side: int) -> Image.Image:
    """Return an image upright and in RGB, with at least `side` pixels on each side if it has them.

    Raise Unreadable or OSError if it cannot be read, or if its size has changed.
    """
    height, width = int(index.heights_N[row]), int(index.widths_N[row])
    store = index.store
    if store.kind == "pixels":
        assert not isinstance(store, FileStore)
        return Image.fromarray(np.asarray(store.fetch(row, Box(0, 0, height, width))))
    assert not isinstance(store, MemoryStore)
    check_pixels(height, width)
    encoded = make_decodable(store.read(row, most_bytes(height, width)), height, width)
    try:
        with open_image(BytesIO(encoded)) as image:
            image.draft("RGB", (2 * side, 2 * side))  # a JPEG is shrunk while it is decoded
            return to_rgb(upright(image))
    except Exception as error:  # a decoder may raise anything at damaged bytes
        raise Unreadable(str(error) or type(error).__name__) from None
