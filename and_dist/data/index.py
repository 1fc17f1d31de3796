"""ImageIndex: which image a row is, and what is known of it before it is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class ImageIndex:
    """Row i is images[i]: pixels [H, W, 3] in memory, or the path of a file."""

    images: NDArray[np.uint8] | Sequence[Path]
    heights_N: NDArray[np.int32]
    widths_N: NDArray[np.int32]
    content_hash: str
    """Of names and sizes of files, or of the pixels: a run continues on the same images only."""

    def __len__(self) -> int:
        return len(self.heights_N)

    @property
    def in_memory(self) -> bool:
        return isinstance(self.images, np.ndarray)


@dataclass(frozen=True)
class LabelledImages:
    """A data set. Labels lie apart from the images: training and discovery get the index alone."""

    index: ImageIndex
    labels_N: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()

    def first(self, count: int | None) -> LabelledImages:
        """The first rows only; all of them for None."""
        if count is None or count >= len(self.index):
            return self
        index = self.index
        cut = ImageIndex(
            index.images[:count],
            index.heights_N[:count],
            index.widths_N[:count],
            f"{index.content_hash}[:{count}]",
        )
        labels = None if self.labels_N is None else self.labels_N[:count]
        return LabelledImages(cut, labels, self.class_names)


def index_pixels(images_NHWC: NDArray[np.uint8]) -> ImageIndex:
    count, height, width, _ = images_NHWC.shape
    return ImageIndex(
        images_NHWC,
        np.full(count, height, np.int32),
        np.full(count, width, np.int32),
        hashlib.sha256(images_NHWC.tobytes()).hexdigest()[:16],
    )


def index_folder(folder: Path) -> LabelledImages:
    """A folder of class folders, or a flat folder of images, which has no labels."""
    files = _image_files(folder)
    sizes = np.array([_read_size(file) for file in files], dtype=np.int32).reshape(-1, 2)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\n".encode())
    index = ImageIndex(files, sizes[:, 0], sizes[:, 1], digest.hexdigest()[:16])
    groups = [file.relative_to(folder).parts[0] for file in files if file.parent != folder]
    if len(groups) < len(files):
        return LabelledImages(index)
    class_names, labels_N = np.unique(groups, return_inverse=True)
    return LabelledImages(index, labels_N.astype(np.int64), tuple(class_names.tolist()))


def _image_files(folder: Path) -> list[Path]:
    """All files below, hidden ones left out, in the order of their names; none may be no image."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of images")
    files = []
    try:
        for base, folders, names in os.walk(folder, onerror=_refuse):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            files += [Path(base, name) for name in sorted(names) if not name.startswith(".")]
    except OSError as error:
        raise ValueError(f"cannot read folder {error.filename}: {error.strerror}") from None
    if not files:
        raise ValueError(f"{folder} holds no image")
    for file in files:
        if file.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"{file} is not an image by its name; take it out of the folder "
                f"(images end in {' '.join(SUFFIXES)})"
            )
    return files


def _refuse(error: OSError) -> None:
    raise error


def _read_size(file: Path) -> tuple[int, int]:
    """(height, width) from the header."""
    try:
        with Image.open(file) as image:
            return image.height, image.width
    except UnidentifiedImageError:
        raise ValueError(f"{file} is not an image: its header is of no known format") from None
    except OSError as error:
        raise ValueError(f"cannot read image {file}: {error.strerror or error}") from None
