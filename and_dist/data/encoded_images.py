"""Check and clean the bytes of an encoded image before DALI decodes them.

DALI 2.4 starts decoding the first images of a batch while it reads the headers of the others. If it
cannot read a header, it frees the memory that the decoders are working on, and the process dies.
So headers are checked here; damage behind them is found in time, and raises an ordinary error.
"""

from __future__ import annotations

from io import BytesIO

from and_dist.data.image_headers import (
    JPEG_SIGNATURE,
    PNG_SIGNATURE,
    Unreadable,
    check_length,
    open_image,
    size_of_bytes,
)
from and_dist.data.transcode import to_rgb

GIF_SIGNATURES = (b"GIF87a", b"GIF89a")
KEPT_CHUNKS = (b"tRNS", b"eXIf")
"""Optional chunks of a PNG that DALI looks at: transparent colours and orientation."""
PALETTE = 3
"""The colour type of a PNG whose pixels are places in a palette."""


def make_decodable(encoded: bytes, height: int, width: int) -> bytes:
    """Return the bytes of an image as DALI is given them.

    They are the image's own but for PNGs with optional chunks, which these lose, and GIFs, of which
    the first frame is decoded here. `height` and `width` are the sides that were measured when the
    image was listed. Raise Unreadable if DALI must not be given this image.
    """
    size = size_of_bytes(encoded)
    if size != (height, width):
        raise Unreadable(
            f"it is {size[0]} x {size[1]} pixels now, {height} x {width} when it was listed"
        )
    check_length(len(encoded), height, width)
    if encoded.startswith(JPEG_SIGNATURE) and not _reaches_its_pixels(encoded):
        raise Unreadable("its header is cut short")
    if encoded.startswith(PNG_SIGNATURE):
        return _without_optional_chunks(encoded)
    if encoded.startswith(GIF_SIGNATURES):
        return first_frame(encoded)
    return encoded


def _reaches_its_pixels(encoded: bytes) -> bool:
    """Return whether the segments of a JPEG before its pixels are complete."""
    at = 2
    while at + 4 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == 0xDA:
            return at + 2 + int.from_bytes(encoded[at + 2 : at + 4]) < len(encoded)
        if marker == 0xFF:
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:
            at += 2
        else:
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4])
    return False


def _without_optional_chunks(encoded: bytes) -> bytes:
    """Return a PNG without the chunks that its pixels do not depend on.

    libpng prints a warning for each that is wrong, such as the colour profiles of some cameras, at
    every decoding. Raise Unreadable if a chunk is incomplete, or the last one missing: a PNG's
    header is all of them, because one behind the pixels may turn the image.
    """
    kept = [encoded[: len(PNG_SIGNATURE)]]
    at, is_whole = len(PNG_SIGNATURE), True
    has_palette = encoded[25:26] == bytes([PALETTE])
    while at + 12 <= len(encoded):
        kind, stop = encoded[at + 4 : at + 8], at + 12 + int.from_bytes(encoded[at : at + 4])
        is_optional = kind[0] >= ord("a") or (kind == b"PLTE" and not has_palette)
        if is_optional and kind not in KEPT_CHUNKS:
            is_whole = False
        else:
            kept.append(encoded[at:stop])
        if kind == b"IEND":
            return encoded if is_whole else b"".join(kept)
        at = stop
    raise Unreadable("it is cut short")


def first_frame(encoded: bytes) -> bytes:
    """Return the first frame of a GIF, which DALI does not decode, as a PNG.

    Its pixels stay places in a palette, so that a large GIF takes a third of the memory.
    """
    frame = BytesIO()
    try:
        with open_image(BytesIO(encoded)) as image:
            image.info.clear()  # what is said to be transparent keeps its colour
            pixels = image if image.mode in ("L", "P") else to_rgb(image)
            pixels.save(frame, "PNG", compress_level=1)
    except Exception as error:  # a decoder may raise anything at damaged bytes
        raise Unreadable(f"its data is damaged or cut short: {error}") from None
    return frame.getvalue()
