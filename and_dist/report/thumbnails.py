"""Encode pictures as data URIs, all of them within the size that a page has for them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image

from and_dist.evaluation.source_pictures import SMALL

LARGEST = 104
"""The largest side of a thumbnail in pixels: as large as page.css shows an anchor."""
MOST_BYTES = 7_500_000
"""The largest size of all thumbnails of a page together, as data URIs."""
SIZES = ((LARGEST, 80), (80, 75), (64, 75), (48, 70), (32, 60), (24, 40))
"""Pairs of side and WebP quality to try, the best first."""
SAMPLE = 200
"""About the number of pictures from which the size of all of them is estimated."""


@dataclass(frozen=True)
class Thumbnails:
    """Hold the thumbnails of a page."""

    uris: dict[str, str] = field(default_factory=dict)
    """A key of the page -> data URI."""
    crisp: frozenset[str] = frozenset()
    """The keys of small images, which have their own pixels and are enlarged without smoothing."""


def encode_all(pictures: Mapping[str, Image.Image]) -> Thumbnails:
    """Return data URIs by key, as large and as good as MOST_BYTES for all of them allows.

    The smallest of SIZES is used even if it takes more.
    """
    every = max(1, len(pictures) // SAMPLE)
    few = dict(list(pictures.items())[::every])
    for side, quality in SIZES[:-1]:
        if every > 1 and every * _size(_encode(few, side, quality)) > MOST_BYTES:
            continue
        found = _encode(pictures, side, quality)
        if _size(found) <= MOST_BYTES:
            return found
    return _encode(pictures, *SIZES[-1])


def _encode(pictures: Mapping[str, Image.Image], side: int, quality: int) -> Thumbnails:
    """Return data URIs of pictures at most `side` pixels high and wide."""
    crisp = {key for key, image in pictures.items() if max(image.size) <= min(side, SMALL)}
    uris = {
        key: as_uri(_twice(image) if key in crisp else _shrink(image, side), quality)
        for key, image in pictures.items()
    }
    return Thumbnails(uris, frozenset(crisp))


def _size(found: Thumbnails) -> int:
    """Return the length of all data URIs together."""
    return sum(map(len, found.uris.values()))


def as_uri(image: Image.Image, quality: int = 80) -> str:
    """Return an image as a data URI in WebP."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _shrink(image: Image.Image, side: int) -> Image.Image:
    """Return a copy of at most `side` pixels height and width; smaller images keep their size."""
    smaller = image.copy()
    smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
    return smaller


def _twice(image: Image.Image) -> Image.Image:
    """Return an image in which every pixel is a square of four.

    WebP stores one colour for four pixels, which would blur the outlines of small images.
    """
    width, height = image.size
    return image.resize((2 * width, 2 * height), Image.Resampling.NEAREST)
