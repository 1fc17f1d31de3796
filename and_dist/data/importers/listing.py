"""What an importer says of one split: where its images lie, and their classes apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from and_dist.data.stores import U8, Names

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")


@dataclass(frozen=True)
class Files:
    """Images that are files of their own."""

    root: Path
    names: Names


@dataclass(frozen=True)
class Members:
    """Encoded images at places of archives."""

    archives: tuple[Path, ...]
    file_N: NDArray[np.int32]
    offset_N: NDArray[np.int64]
    length_N: NDArray[np.int64]


@dataclass(frozen=True)
class Pixels:
    """Decoded images of one size [N, H, W, 3]."""

    images_NHWC: U8


@dataclass(frozen=True)
class Listing:
    split: str
    content: Files | Members | Pixels
    labels_N: NDArray[np.int64] | None
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        match self.content:
            case Files():
                return len(self.content.names)
            case Members():
                return len(self.content.file_N)
            case Pixels():
                return len(self.content.images_NHWC)


def number_classes(names: list[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels in the order of the class names, as everyone counts them."""
    class_names, labels_N = np.unique(names, return_inverse=True)
    return labels_N.astype(np.int64), tuple(class_names.tolist())


def load_mat(file: Path | BinaryIO, name: str, kind: str) -> dict[str, Any]:
    """A MATLAB file with its cells squeezed; `name is no kind` for anything else."""
    from scipy.io import loadmat

    try:
        content: dict[str, Any] = loadmat(file, squeeze_me=True)
    except Exception as error:  # scipy's readers throw anything at bytes that are no MATLAB file
        raise ValueError(f"{name} is no {kind}: {error}") from None
    return content


def is_image_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)
