"""Images, files and folders of them, and tars, as the tests need them written."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Size = tuple[int, int]
"""(width, height), as Pillow has it."""


def noise(seed: int, shape: Sequence[int]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def picture(seed: int = 0, size: Size = (48, 36)) -> Image.Image:
    """Smooth, so that a JPEG of it is near to it."""
    return Image.fromarray(noise(seed, (4, 4, 3))).resize(size, Image.Resampling.BICUBIC)


def oriented(orientation: int, maker: str = "a maker of cameras") -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = maker
    return exif


def encode(seed: int, kind: str = "JPEG", size: Size = (9, 7), **options: Any) -> bytes:
    """Noise, so that no other seed gives these bytes."""
    file = io.BytesIO()
    Image.fromarray(noise(seed, (size[1], size[0], 3))).save(file, kind, **options)
    return file.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def save_pictures(
    folder: Path,
    sizes: Sequence[Size],
    classes: str = "",
    suffixes: Sequence[str] = ("jpg",),
    **options: Any,
) -> Path:
    """Row n is picture(n), whatever its class: 40 of them are 00.jpg to 39.jpg, or a/00.jpg on.

    Suffixes take turns; classes are one letter each and get equally many, one after the other.
    """
    digits = len(str(len(sizes) - 1))
    for number, size in enumerate(sizes):
        label = classes[number * len(classes) // len(sizes)] if classes else ""
        name = f"{number:0{digits}}.{suffixes[number % len(suffixes)]}"
        save(folder / label / name, picture(number, size), **options)
    return folder


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def cut_pixels(path: Path, share: float = 0.25) -> None:
    """Of a JPEG: its headers stay whole, most of its pixels are gone."""
    scan = path.read_bytes().index(b"\xff\xda")
    os.truncate(path, scan + 14 + int(share * (path.stat().st_size - scan)))


def cut_header(path: Path) -> None:
    """Of a JPEG: after its size, before its pixels."""
    os.truncate(path, path.read_bytes().index(b"\xff\xda"))


def cut_png(path: Path) -> None:
    """Within its pixels."""
    os.truncate(path, path.stat().st_size * 7 // 10)


def tar_of(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()
