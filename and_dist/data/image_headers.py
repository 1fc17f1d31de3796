"""Read the height and width of an image from its first bytes, without decoding it.

JPEG and PNG, of which large sets are made, are read here; other formats go through Pillow. Sizes
are those that DALI shows: EXIF orientations 5 to 8, which turn an image by 90 degrees, swap the
sides. The header also bounds how many bytes of a file can belong to its image.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from and_dist.utils.plain_files import Piece, open_regular

HEAD_BYTES = 16384
"""The number of bytes of a file that are read first."""
MOST_HEAD_BYTES = 2**26
"""The most bytes of a JPEG that are read to find its size, behind profiles and comments."""
MAX_PIXELS = 178_956_970
"""The most pixels an image may have: Pillow refuses larger ones as an attack."""
BYTES_PER_PIXEL = 8
"""The most bytes of a pixel in a file: four channels of 16 bits."""
MOST_BYTES_BESIDE = 2**27
"""The most bytes of a file beside the pixels: profiles, further frames, the film of a telephone."""
RGB_BYTES = 3
"""The bytes of a decoded pixel."""
JPEG_SIGNATURE = b"\xff\xd8"
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
"""The transposition that brings an image of each EXIF orientation upright."""
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the JPEG segments that hold the size (SOF0 to SOF15)."""


class Unreadable(ValueError):
    """Say why an image cannot be measured or decoded."""


def size_of_file(path: str | Path) -> tuple[int, int, int]:
    """Return (number of bytes, height, width) of the image in a file.

    No more is read than tells the size. Raise Unreadable if the file cannot be read, holds no
    image, or is longer than an image of its size can be.
    """
    try:
        descriptor, length = open_regular(path)
        try:
            size = size_of_piece(Piece(descriptor, 0, length))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unreadable(f"it cannot be read: {error.strerror or error}") from None
    return length, *size


def size_of_piece(piece: Piece) -> tuple[int, int]:
    """Return (height, width) of the image in a file or in a piece of one.

    Raise Unreadable if it is none, or has more bytes than an image of its size.
    """
    if piece.length == 0:
        raise Unreadable("it is empty")
    head = piece.read_at(0, HEAD_BYTES)
    size = size_of_head(head)
    if head.startswith(PNG_SIGNATURE):
        tail = piece.read_at(max(0, piece.length - HEAD_BYTES), HEAD_BYTES)
        if size is None or b"eXIf" in tail:  # it may stand behind the pixels
            size = _size_of_turned_png(piece.read_at)
    while size is None and head.startswith(JPEG_SIGNATURE) and len(head) < piece.length:
        if len(head) >= MOST_HEAD_BYTES:
            break
        head = piece.read_at(0, 8 * len(head))
        size = size_of_head(head)
    size = size or _size_by_pillow(BufferedReader(piece))
    check_length(piece.length, *size)
    return size


def size_of_bytes(encoded: bytes) -> tuple[int, int]:
    """Return (height, width) of a whole encoded image; raise Unreadable if it is none."""
    if not encoded:
        raise Unreadable("it is empty")
    size = size_of_head(encoded)
    if size is None and encoded.startswith(PNG_SIGNATURE):
        size = _size_of_turned_png(lambda at, count: encoded[at : at + count])
    return size or _size_by_pillow(BytesIO(encoded))


def most_bytes(height: int, width: int) -> int:
    """Return the most bytes that the file of an image of a size can have."""
    return BYTES_PER_PIXEL * min(height * width, MAX_PIXELS) + MOST_BYTES_BESIDE


def check_length(length: int, height: int, width: int) -> None:
    """Raise Unreadable for more bytes than an image of a size can have."""
    most = most_bytes(height, width)
    if length > most:
        raise Unreadable(
            f"it has {length:,} bytes, and an image of {height} x {width} pixels has at most "
            f"{most:,}"
        )


def check_pixels(height: int, width: int, decode_mb: int | None = None) -> None:
    """Raise Unreadable unless sides are positive, and the pixels no more than may be decoded.

    `decode_mb` is what data.decode_mb allows, None for any image that is read at all.
    """
    if height < 1 or width < 1:
        raise Unreadable(f"its header says {height} x {width} pixels")
    if height * width > MAX_PIXELS:
        raise Unreadable(f"{height} x {width} pixels are more than {MAX_PIXELS}")
    needed_mb = RGB_BYTES * height * width / 1e6
    if decode_mb is not None and needed_mb > decode_mb:
        raise Unreadable(
            f"{height} x {width} pixels take {needed_mb:,.1f} MB when they are decoded, and "
            f"data.decode_mb={decode_mb} allows less"
        )


def size_of_head(head: bytes) -> tuple[int, int] | None:
    """Return (height, width) from the first bytes of a JPEG or PNG; None if they do not tell."""
    if head.startswith(PNG_SIGNATURE) and len(head) >= 24:
        width, height = struct.unpack(">II", head[16:24])
        return (height, width) if b"eXIf" not in head else None
    if head.startswith(JPEG_SIGNATURE):
        return _size_of_jpeg(head)
    return None


def _size_of_turned_png(read_at: Callable[[int, int], bytes]) -> tuple[int, int]:
    """Return (height, width) of a PNG, any of whose chunks may turn it; decode nothing.

    Raise Unreadable if a chunk is incomplete.
    """
    width, height = struct.unpack(">II", read_at(16, 8).ljust(8, b"\0"))
    at, orientation = len(PNG_SIGNATURE), 1
    while len(chunk := read_at(at, 8)) == 8:
        length, kind = int.from_bytes(chunk[:4]), chunk[4:]
        if kind == b"IEND":
            return (width, height) if orientation in (5, 6, 7, 8) else (height, width)
        if kind == b"eXIf":
            orientation = _exif_orientation(read_at(at + 8, min(length, HEAD_BYTES)))
        at += 12 + length
    raise Unreadable("it is cut short")


def _size_of_jpeg(head: bytes) -> tuple[int, int] | None:
    """Return (height, width) from the frame header of a JPEG; None if it is not in the first bytes.

    An EXIF segment on the way may swap the sides.
    """
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
    """Return the orientation tag of an EXIF block's first directory; 1 if there is none."""
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


def _size_by_pillow(file: IO[bytes]) -> tuple[int, int]:
    """Return (height, width) as Pillow reads them; raise Unreadable if it cannot."""
    try:
        with open_image(file) as image:
            check_white(image)
            return _upright_size(image)
    except UnidentifiedImageError:
        raise Unreadable("its header is of no known image format") from None
    except Exception as error:  # a decoder may raise anything at bytes that are no image
        raise Unreadable(str(error) or type(error).__name__) from None


@contextmanager
def open_image(file: IO[bytes]) -> Iterator[Image.Image]:
    """Open an image by Pillow, without its warning that it is large: check_pixels says how large
    one may be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(file)
    with image:
        yield image


def check_white(image: Image.Image) -> None:
    """Raise Unreadable if nothing says which value of a pixel is white.

    This is so for floating-point pixels and for signed or 32-bit integers.
    """
    # Pillow opens a 16-bit PPM in the 32-bit mode "I" too, but its header says that it has 16.
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        kind = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise Unreadable(f"its pixels are {kind}, which leaves open what is white; 8 or 16 bits do")


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width), as DALI shows it, of an image that Pillow has opened."""
    is_turned = orientation(image) in (5, 6, 7, 8)
    return (image.width, image.height) if is_turned else (image.height, image.width)


def upright(image: Image.Image) -> Image.Image:
    """Return the image turned as its EXIF orientation says.

    Pillow itself would also follow an orientation in XMP, which DALI does not show.
    """
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that is still to be applied; 1 if there is none."""
    if image.format == "PNG":
        image.load()  # a PNG's EXIF chunk may stand behind its pixels
    exif = image.info.get("exif")
    # Pillow turns TIFFs by itself when it loads them.
    if image.format == "TIFF" or not isinstance(exif, bytes):
        return 1
    return _exif_orientation(exif.removeprefix(b"Exif\0\0"))
