"""Decode, turn upright, resize and encode one image, as a pack or a cache keeps it."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from and_dist.data.image_headers import check_white, upright, upright_size

JPEG_QUALITY = 90


SUFFIX_OF = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}


@dataclass(frozen=True)
class PackOptions:
    """What becomes of the images; the defaults keep them where they are."""

    pack: bool = False
    """Tars of at most 1 GiB: the images' own bytes, unless `resize` is given."""
    resize: int | None = None
    """Re-encode as JPEG, the shorter side cut down to this."""
    quality: int | None = None
    """JPEG quality of `resize`; None is JPEG_QUALITY."""
    raw: int | None = None
    """Blocks of uint8 pixels, the shorter side cut down to this."""

    def __post_init__(self) -> None:
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
        return self.pack or self.raw is not None

    @property
    def side(self) -> int | None:
        return self.raw or self.resize

    def refuse_for_pixels(self, source: object) -> None:
        """ValueError if anything is asked for of a source that comes as pixels."""
        if self != PackOptions():
            raise ValueError(
                f"{source} comes as pixels and is stored as it is, with nothing left to decode: "
                "leave out --pack, --resize, --quality and --raw"
            )


def target_size(height: int, width: int, side: int | None) -> tuple[int, int]:
    """Sides after the shorter one is cut down to `side`; images are never made larger."""
    shorter = min(height, width)
    if side is None or shorter <= side:
        return height, width
    return max(1, round(height * side / shorter)), max(1, round(width * side / shorter))


def transform(encoded: bytes, options: PackOptions) -> tuple[bytes, int, int, str]:
    """(bytes, height, width, file suffix) of one image in the pack."""
    with Image.open(io.BytesIO(encoded)) as image:
        kind = image.format or "JPEG"
        height, width = upright_size(image)
        target = target_size(height, width, options.side)
        if options.raw is None and (options.side is None or target == (height, width)):
            return encoded, height, width, SUFFIX_OF.get(kind, ".img")
        if kind == "JPEG":
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
    """8 bits a channel; Pillow would cut 16-bit gray off at 255 instead of scaling it."""
    check_white(image)
    if image.mode.startswith("I"):
        high_bytes = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return Image.fromarray(high_bytes).convert("RGB")
    return image.convert("RGB")
