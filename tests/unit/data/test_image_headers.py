"""Sizes from headers are those Pillow shows, for every format and for bytes that are none."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from and_dist.data.image_headers import HEAD_BYTES, Unreadable, size_of_bytes, size_of_file
from tests.pictures import encode, noise, oriented, write


def shown_size(encoded: bytes) -> tuple[int, int]:
    """(height, width) as Pillow shows the image upright."""
    with Image.open(io.BytesIO(encoded)) as image:
        width, height = ImageOps.exif_transpose(image).size
    return height, width


def encode_mode(mode: str, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(5, (21, 13, 3))).convert(mode).save(file, kind, **options)
    return file.getvalue()


HEADS = {
    "baseline": encode(1, size=(33, 21)),
    "progressive": encode(1, size=(33, 21), progressive=True),
    "restarts": encode(1, size=(33, 21), restart_marker_rows=1),
    "comment": encode(1, size=(33, 21), comment=b"\xff\xc0 not a frame" * 20),
    "long profile": encode(1, size=(33, 21), icc_profile=bytes(3 * HEAD_BYTES)),
    "CMYK": encode_mode("CMYK", "JPEG"),
    "gray JPEG": encode_mode("L", "JPEG"),
    "PNG": encode(1, "PNG", size=(33, 21)),
    "palette PNG": encode_mode("P", "PNG"),
    "BMP": encode(1, "BMP", size=(33, 21)),
    "WebP": encode(1, "WEBP", size=(33, 21)),
    "TIFF": encode(1, "TIFF", size=(33, 21)),
    "GIF": encode_mode("P", "GIF"),
    "PPM": encode(1, "PPM", size=(33, 21)),
    "1x1 JPEG": encode(1, size=(1, 1)),
    "1x1 PNG": encode(1, "PNG", size=(1, 1)),
    "65000x1": encode(1, size=(65000, 1)),
}


def assert_sizes_are_pillows(encoded: bytes, folder: Path) -> None:
    expected = shown_size(encoded)
    assert size_of_bytes(encoded) == expected
    path = write(folder / "image", encoded)
    assert size_of_file(path) == (len(encoded), *expected)


@pytest.mark.parametrize("name", HEADS)
def test_headers_tell_the_size(tmp_path: Path, name: str) -> None:
    assert_sizes_are_pillows(HEADS[name], tmp_path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_headers_of_images_a_camera_turned(tmp_path: Path, kind: str, orientation: int) -> None:
    assert_sizes_are_pillows(encode(1, kind, size=(33, 21), exif=oriented(orientation)), tmp_path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_orientation_beyond_the_first_bytes_counts(tmp_path: Path, kind: str) -> None:
    exif = oriented(6, maker="m" * 2 * HEAD_BYTES)
    assert_sizes_are_pillows(encode(1, kind, size=(33, 21), exif=exif), tmp_path)


def test_an_orientation_in_big_endian_counts(tmp_path: Path) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    assert_sizes_are_pillows(encode(1, size=(33, 21), exif=exif), tmp_path)


def with_orientation_after_its_pixels(orientation: int) -> bytes:
    """PNG allows eXIf after the image data."""
    before = encode(1, "PNG", size=(133, 101), exif=oriented(orientation))
    at = before.index(b"eXIf") - 4
    end = at + 12 + struct.unpack(">I", before[at : at + 4])[0]
    assert len(before) > 2 * HEAD_BYTES
    return before[:at] + before[end:-12] + before[at:end] + before[-12:]


def test_an_orientation_after_the_pixels_of_a_png_counts(tmp_path: Path) -> None:
    assert_sizes_are_pillows(with_orientation_after_its_pixels(6), tmp_path)


def test_no_image_is_unreadable_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="it is empty"):
        size_of_bytes(b"")
    with pytest.raises(Unreadable, match="no known image format"):
        size_of_bytes(b"hello, this is a letter")
    with pytest.raises(Unreadable, match="cannot be read: No such file"):
        size_of_file(tmp_path / "none.jpg")
    with pytest.raises(Unreadable, match="cannot be read: no regular file"):
        size_of_file(tmp_path)


DDS = b"DDS |\0\0\0\x07\x10\0\0" + bytes(64) + b"\x20\0\0\0\x9b" + bytes(47)
AVIF = encode(1, "AVIF", size=(32, 32)).replace(b"iinf\0\0\0\0\0\1", b"iinf" + bytes(6))


@pytest.mark.parametrize("encoded", [DDS, AVIF])
def test_what_pillow_gives_up_on_is_unreadable(encoded: bytes) -> None:
    with pytest.raises(Unreadable):
        size_of_bytes(encoded)


def assert_sized_or_unreadable(encoded: bytes) -> None:
    with contextlib.suppress(Unreadable):
        assert min(size_of_bytes(encoded)) >= 0


SIGNATURES = [
    b"\xff\xd8",
    b"\xff\xd8\xff\xe1\x00\x40Exif\0\0II*\0\x08\0\0\0",
    b"\x89PNG\r\n\x1a\n",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    b"GIF89a",
    b"BM",
    b"RIFF\x40\0\0\0WEBPVP8 ",
    b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08",
    b"P6 ",
    b"P5\n3 ",
    b"\0\0\x01\0",
    b"8BPS\0\x01",
    b"\n\x05\x01\x08",
]


@given(st.sampled_from([b"", *SIGNATURES]), st.binary(max_size=120))
def test_random_bytes_are_sized_or_unreadable(signature: bytes, rest: bytes) -> None:
    assert_sized_or_unreadable(signature + rest)


TURNED = {kind: encode(1, kind, exif=oriented(6)) for kind in ("JPEG", "PNG", "WEBP", "TIFF")}


@given(st.sampled_from([*HEADS.values(), *TURNED.values()]), st.data())
def test_damaged_images_are_sized_or_unreadable(encoded: bytes, data: st.DataObject) -> None:
    content = bytearray(encoded[:2000])
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    assert_sized_or_unreadable(bytes(content[: data.draw(st.integers(0, len(content)))]))
