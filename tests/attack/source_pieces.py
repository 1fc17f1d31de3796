"""Hostile pieces of sources.

They state more bytes than anybody has, lead elsewhere, or are nothing that can be read.
"""

from __future__ import annotations

import gzip
import io
import os
import random
import socket
import struct
import tarfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from tests.pictures import encode, picture

TERABYTE = 10**12


def sparse(path: Path, beginning: bytes = b"", size: int = TERABYTE) -> None:
    """Write a file of a terabyte that takes no room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(beginning)
    os.truncate(path, size)


def fifo(path: Path) -> None:
    """Put a pipe that nobody writes to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    """Put a link to a device that never ends."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    """Put a socket, whose name has to be short."""
    path.unlink(missing_ok=True)
    before = os.open(".", os.O_RDONLY)
    end = socket.socket(socket.AF_UNIX)
    place = os.open(path.parent, os.O_RDONLY)
    try:
        end.bind(f"/proc/self/fd/{place}/{path.name}")
    finally:
        end.close()
        os.close(place)
        os.close(before)


def itself(path: Path) -> None:
    """Put a link to itself."""
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def empty(path: Path) -> None:
    """Leave nothing in it."""
    path.write_bytes(b"")


def vast(path: Path) -> None:
    """Let it end a terabyte behind its content."""
    sparse(path, path.read_bytes())


REPLACE: dict[str, Callable[[Path], None]] = {
    "a pipe": fifo,
    "a link to /dev/zero": device,
    "a socket": listening,
    "a link to itself": itself,
    "an empty file": empty,
    "a terabyte of zeros": sparse,
    "a terabyte behind its content": vast,
}


def cut(content: bytes, chance: random.Random) -> bytes:
    """Cut it short."""
    return content[: chance.randrange(len(content) + 1)]


def bend_beginning(content: bytes, chance: random.Random) -> bytes:
    """Change some of its first bytes, which say what it holds and how much."""
    return _bend(content, min(len(content), 600), chance)


def bend_anywhere(content: bytes, chance: random.Random) -> bytes:
    """Change some of its bytes."""
    return _bend(content, len(content), chance)


def _bend(content: bytes, within: int, chance: random.Random) -> bytes:
    bent = bytearray(content)
    for _ in range(chance.randint(1, 6)):
        if within:
            bent[chance.randrange(within)] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, 0x30, 0x37])
    return bytes(bent)


BEND: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": cut,
    "bent at its beginning": bend_beginning,
    "bent": bend_anywhere,
    "doubled": lambda content, _: content + content,
    "zeros behind it": lambda content, chance: content + bytes(chance.randrange(1, 5000)),
}


def bomb(beginning: bytes, gigabytes: int = 40) -> bytes:
    """Return some megabytes of gzip that unpack to a beginning and gigabytes of zeros."""
    return gzip.compress(beginning) + _gigabyte() * gigabytes


@cache
def _gigabyte() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(bytes(10**7)) for _ in range(100)) + packer.flush()


@cache
def huge_png(side: int = 12_000, turned: bool = False) -> bytes:
    """Return a black PNG of side x side pixels; `turned` says by EXIF that it lies on its side."""
    packer = zlib.compressobj(1)
    line = bytes(1 + 3 * side) * 16
    pixels = b"".join(packer.compress(line) for _ in range(side // 16)) + packer.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", pixels)]
    if turned:
        chunks.append((b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*chunks, (b"IEND", b""))
    )


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that states a size and has pixels for none of it."""
    whole = bytearray(encode(0, "PNG"))
    whole[16:24] = struct.pack(">II", width, height)
    whole[29:33] = struct.pack(">I", zlib.crc32(bytes(whole[12:29])))
    return bytes(whole)


@cache
def huge_image(kind: str, side: int = 12_000) -> bytes:
    """Return a black image of any format of Pillow's."""
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, kind)
    return file.getvalue()


def tar_block(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """Return the header of a member whose size is whatever the 12 bytes say."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136], block[136:148], block[156:157] = size.ljust(12, b"\0"), b"00000000000\0", kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def base256(number: int) -> bytes:
    """Return a size as GNU's tar writes those that octal digits cannot."""
    return (number % 2**96 | (1 << 95)).to_bytes(12, "big")


def tar_file(members: dict[str, tuple[bytes, bytes]]) -> bytes:
    """Return a tar of name -> (kind of the member, content)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, (kind, content) in members.items():
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "/etc/passwd"
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def odd_jpegs() -> dict[str, bytes]:
    """Return JPEGs that cameras and programs write, and some that nobody does."""

    def saved(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    whole = saved(picture(0))
    sof = whole.index(b"\xff\xc0")
    looping = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x69\x87\x04\0\x01\0\0\0\x08\0\0\0" + b"\x08\0\0\0"
    return {
        "cmyk.jpg": saved(picture(0).convert("CMYK")),
        "gray.jpg": saved(picture(0).convert("L")),
        "progressive.jpg": saved(picture(0), progressive=True),
        "12bit.jpg": whole[: sof + 4] + b"\x0c" + whole[sof + 5 :],
        "exif-loop.jpg": saved(picture(0), exif=b"Exif\0\0" + looping),
        "absurd.jpg": whole[: sof + 5] + b"\xff\xff\xff\xff" + whole[sof + 9 :],
        "no-size.jpg": whole[: sof + 5] + bytes(4) + whole[sof + 9 :],
        "frames.gif": saved(picture(0), "GIF", save_all=True, append_images=[picture(1)] * 300),
        "bit.png": saved(picture(0).convert("1"), "PNG"),
        "alpha.png": saved(picture(0).convert("RGBA"), "PNG"),
        "la.png": saved(picture(0).convert("LA"), "PNG"),
        "palette.png": saved(picture(0).convert("P"), "PNG"),
        "deep.png": saved(Image.fromarray(np.full((9, 9), 40_000, np.uint16)), "PNG"),
        "float.tif": saved(picture(0).convert("F"), "TIFF"),
        "cmyk.tif": saved(picture(0).convert("CMYK"), "TIFF", compression="tiff_lzw"),
        "fax.tif": saved(picture(0).convert("1"), "TIFF", compression="group4"),
        "thin.png": saved(Image.new("RGB", (60_000, 1)), "PNG"),
        "pixel.jpg": saved(Image.new("RGB", (1, 1))),
        "jpeg.png": whole,
        "text.jpg": b"no image at all\n" * 40,
        "html.jpg": b"<!doctype html><title>404</title>",
    }
