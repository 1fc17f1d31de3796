"""Decode one image, turn it upright, resize and encode it, as a pack or a cache keeps it."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from and_dist.data.image_headers import (
    check_pixels,
    check_white,
    open_image,
    size_of_bytes,
    upright,
)

JPEG_QUALITY = 90
"""Default quality of re-encoded JPEGs."""


SUFFIX_OF = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}
"""The suffix of a packed file by Pillow's name of its format."""


@dataclass(frozen=True)
class PackOptions:
    """Hold how images are packed; by default they stay where they are."""

    pack: bool = False
    """Write tars of at most 1 GiB, with the images' own bytes unless `resize` is given."""
    resize: int | None = None
    """Re-encode as JPEG with the shorter side shrunk to this."""
    quality: int | None = None
    """JPEG quality with `resize`; None is JPEG_QUALITY."""
    raw: int | None = None
    """Write blocks of uint8 pixels with the shorter side shrunk to this."""

    def __post_init__(self) -> None:
        """Raise ValueError if the options contradict each other or are out of range."""
        if self.raw is not None and (self.pack or self.resize is not None):
            raise ValueError("--raw stores pixels, --pack and --resize store JPEGs: choose one")
        if self.resize is not None and not self.pack:
            raise ValueError("--resize needs --pack, which writes what it resizes")
        if self.quality is not None and self.resize is None:
            raise ValueError("--quality needs --resize, which encodes what it resizes")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ValueError(f"--quality {self.quality} is not one of 1..100")
        if any(side is not None and side < 1 for side in (self.raw, self.resize)):
            raise ValueError("--raw and --resize take a number of pixels above 0")

    @property
    def rewrites(self) -> bool:
        """Return whether images are written to new files."""
        return self.pack or self.raw is not None

    @property
    def side(self) -> int | None:
        """Return the side that the shorter side is shrunk to; None keeps the size."""
        return self.raw or self.resize

    def refuse_for_pixels(self, source: object) -> None:
        """Raise ValueError if any option is set, for a source that holds pixels."""
        if self != PackOptions():
            raise ValueError(
                f"{source} comes as pixels and is stored as it is, with nothing left to decode: "
                "leave out --pack, --resize, --quality and --raw"
            )


def target_size(height: int, width: int, side: int | None) -> tuple[int, int]:
    """Return (height, width) after the shorter side is shrunk to `side`; nothing is enlarged."""
    shorter = min(height, width)
    if side is None or shorter <= side:
        return height, width
    return max(1, round(height * side / shorter)), max(1, round(width * side / shorter))


def transform(encoded: bytes, options: PackOptions) -> tuple[bytes, int, int, str]:
    """Return (bytes, height, width, file suffix) of one image as the pack keeps it.

    An image that needs no resize keeps its own bytes, unless raw pixels are wanted.
    """
    height, width = size_of_bytes(encoded)
    check_pixels(height, width)
    with open_image(io.BytesIO(encoded)) as image:
        kind = image.format or "JPEG"
        target = target_size(height, width, options.side)
        if options.raw is None and (options.side is None or target == (height, width)):
            return encoded, height, width, SUFFIX_OF.get(kind, ".img")
        if kind == "JPEG":
            # The decoder itself can shrink a JPEG, which saves work. It stops at twice the target
            # or more, so that the bicubic resize below still sets the quality.
            image.draft(
                "RGB",
                (2 * target[1], 2 * target[0])
                if height <= width
                else (2 * max(target), 2 * max(target)),
            )
        pixels = to_rgb(upright(image))
        if pixels.size != (target[1], target[0]):
            pixels = pixels.resize((target[1], target[0]), Image.Resampling.BICUBIC, reducing_gap=3)
    if options.raw is not None:
        return pixels.tobytes(), *target, ".rgb"
    encoder = io.BytesIO()
    pixels.save(encoder, "JPEG", quality=options.quality or JPEG_QUALITY)
    return encoder.getvalue(), *target, ".jpg"


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image in RGB with 8 bits a channel; raise Unreadable if its white is undefined."""
    check_white(image)
    if image.mode.startswith("I"):
        # Pillow's convert would clip 16-bit gray at 255 instead of scaling it.
        high_bytes = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return Image.fromarray(high_bytes).convert("RGB")
    if image.mode != "RGB":
        return image.convert("RGB")
    image.load()  # now: its file is closed soon
    return image
