"""Height and width of an image from its first bytes, nothing decoded.

JPEG and PNG, which large sets are made of, are read here; the rest goes through Pillow. What DALI
will show is meant: a camera's "turn by 90 degrees" (EXIF orientation 5 to 8) swaps the sides.
"""

from __future__ import annotations

import os
import struct
import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

HEAD_BYTES = 16384
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ORIENTATION_TAG = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class Unreadable(ValueError):
    """Why this is no image we can size."""


def size_of_file(path: str | Path) -> tuple[int, int, int]:
    """(bytes, height, width) of the image in a file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            length = os.fstat(descriptor).st_size
            head = os.read(descriptor, HEAD_BYTES)
            size = size_of_head(head)
            if length > len(head) and head.startswith(PNG_SIGNATURE):
                # A PNG may be turned by what stands behind its pixels.
                tail = os.pread(descriptor, HEAD_BYTES, length - HEAD_BYTES)
                size = None if b"eXIf" in tail else size
            if size is None and length > len(head):
                head = os.pread(descriptor, length, 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unreadable(f"it cannot be read: {error.strerror or error}") from None
    return length, *(size or size_of_bytes(head))


def size_of_bytes(encoded: bytes) -> tuple[int, int]:
    """(height, width) of a whole encoded image."""
    if not encoded:
        raise Unreadable("it is empty")
    return size_of_head(encoded) or _size_by_pillow(encoded)


def check_decodable(encoded: bytes, height: int, width: int) -> None:
    """Unreadable if DALI must not be given this image.

    DALI 2.4 starts decoding the first images of a batch while it reads the headers of the others; a
    header it cannot read frees what those are working on, and the process dies of it. Damage behind
    the header is found in time, and is an error like any other. Of a PNG the header is all chunks
    to its end: one behind the pixels may turn them.
    """
    size = size_of_bytes(encoded)
    if size != (height, width):
        raise Unreadable(
            f"it is {size[0]} x {size[1]} pixels now, {height} x {width} when it was listed"
        )
    if encoded.startswith(b"GIF8"):
        raise Unreadable("DALI decodes no GIF")
    if encoded.startswith(b"\xff\xd8") and not _reaches_its_pixels(encoded):
        raise Unreadable("its header is cut short")
    if encoded.startswith(PNG_SIGNATURE) and not _reaches_its_end(encoded):
        raise Unreadable("it is cut short")


def _reaches_its_pixels(encoded: bytes) -> bool:
    """Whether the segments of a JPEG before its pixels are whole."""
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


def _reaches_its_end(encoded: bytes) -> bool:
    """Whether the chunks of a PNG are whole, the last one too."""
    at = len(PNG_SIGNATURE)
    while at + 12 <= len(encoded):
        if encoded[at + 4 : at + 8] == b"IEND":
            return True
        at += 12 + int.from_bytes(encoded[at : at + 4])
    return False


def size_of_head(head: bytes) -> tuple[int, int] | None:
    """None if the first bytes do not tell."""
    if head.startswith(PNG_SIGNATURE) and len(head) >= 24:
        width, height = struct.unpack(">II", head[16:24])
        return (height, width) if b"eXIf" not in head else None
    if head.startswith(b"\xff\xd8"):
        return _size_of_jpeg(head)
    return None


def _size_of_jpeg(head: bytes) -> tuple[int, int] | None:
    """Walk the segments to the frame header; an EXIF segment on the way may swap the sides."""
    at, is_turned, has_exif = 2, False, False
    while at + 9 <= len(head):
        if head[at] != 0xFF:
            return None
        marker = head[at + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7:
            at += 1 if marker == 0xFF else 2
            continue
        length = (head[at + 2] << 8) | head[at + 3]
        if marker in FRAME_MARKERS:
            height, width = struct.unpack(">HH", head[at + 5 : at + 9])
            if height == 0 or width == 0:
                return None
            return (width, height) if is_turned else (height, width)
        if marker == 0xE1 and head[at + 4 : at + 10] == b"Exif\0\0" and not has_exif:
            if at + 2 + length > len(head):
                return None
            has_exif = True
            is_turned = _exif_orientation(head[at + 10 : at + 2 + length]) in (5, 6, 7, 8)
        at += 2 + length
    return None


def _exif_orientation(tiff: bytes) -> int:
    """The orientation tag of the first image directory, 1 where there is none."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    (start,) = struct.unpack(order + "I", tiff[4:8])
    if start + 2 > len(tiff):
        return 1
    (count,) = struct.unpack(order + "H", tiff[start : start + 2])
    for entry in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind = struct.unpack(order + "HH", tiff[entry : entry + 4])
        if tag == ORIENTATION_TAG and kind == 3:
            return int(struct.unpack(order + "H", tiff[entry + 8 : entry + 10])[0])
    return 1


def _size_by_pillow(encoded: bytes) -> tuple[int, int]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(BytesIO(encoded)) as image:
                check_white(image)
                return upright_size(image)
    except UnidentifiedImageError:
        raise Unreadable("its header is of no known image format") from None
    except Exception as error:  # a decoder may throw anything at bytes that are no image
        raise Unreadable(str(error) or type(error).__name__) from None


def check_white(image: Image.Image) -> None:
    """Unreadable if nothing says how bright a pixel is; the 32 bits of a PPM are 16 by its head."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        kind = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise Unreadable(f"its pixels are {kind}, which leaves open what is white; 8 or 16 bits do")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) as DALI shows an image that Pillow has opened."""
    is_turned = orientation(image) in (5, 6, 7, 8)
    return (image.width, image.height) if is_turned else (image.height, image.width)


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF segment says, and by nothing else (Pillow would follow XMP)."""
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be done: Pillow turns TIFFs by itself."""
    if image.format == "PNG":
        image.load()  # what turns a PNG may stand behind its pixels
    exif = image.info.get("exif")
    if image.format == "TIFF" or not isinstance(exif, bytes):
        return 1
    return _exif_orientation(exif.removeprefix(b"Exif\0\0"))
