"""Describe one split as an importer finds it: where its images lie, and their classes apart.

N all rows of the split.
"""

from __future__ import annotations

import io
import resource
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from and_dist.data.processes import open_processes
from and_dist.data.stores import U8, Names

SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".png",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".gif",
)
"""The suffixes of file names that are taken for images."""


@dataclass(frozen=True)
class Files:
    """Name images that are files of their own."""

    root: Path
    names: Names


@dataclass(frozen=True)
class Members:
    """Locate encoded images in archives."""

    archives: tuple[Path, ...]
    file_N: NDArray[np.int32]
    offset_N: NDArray[np.int64]
    length_N: NDArray[np.int64]


@dataclass(frozen=True)
class Pixels:
    """Hold decoded images of one size [N, H, W, 3]."""

    images_NHWC: U8


@dataclass(frozen=True)
class Listing:
    """Describe one split: its images, their labels [N] or None, and the names of the classes."""

    split: str
    content: Files | Members | Pixels
    labels_N: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    ignored: str = ""
    """What else lies among the images, such as `9 .txt, 2 hidden`."""
    is_whole: bool = True
    """False if only the first images were asked for and there are more."""

    def __len__(self) -> int:
        """Return the number of images."""
        match self.content:
            case Files():
                return len(self.content.names)
            case Members():
                return len(self.content.file_N)
            case Pixels():
                return len(self.content.images_NHWC)


def number_classes(
    names: Sequence[str], others: Sequence[str] = ()
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return (labels of names, class names), numbered in the sorted order of the class names.

    `others` are names of classes that have no label among the first.
    """
    class_names, labels_N = np.unique([*names, *others], return_inverse=True)
    return labels_N[: len(names)].astype(np.int64), tuple(class_names.tolist())


def load_mat(file: Path | bytes, name: str, kind: str) -> dict[str, Any]:
    """Return the content of a MATLAB file, its cells squeezed; raise ValueError if it is none.

    `name` and `kind` name the file in the error message. It is read in a process of its own, since
    scipy's reader can crash at a damaged file.
    """
    with open_processes(1) as pool:
        try:
            found = pool.submit(_read_mat, file).result()
        except BrokenProcessPool:
            found = "its reader crashed"
    if isinstance(found, str):
        raise ValueError(f"{name} is no {kind}: {found}")
    return found


def _read_mat(file: Path | bytes) -> dict[str, Any] | str:
    """Return the content of a MATLAB file, or why there is none."""
    from scipy.io import loadmat

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no file behind
    try:
        content: dict[str, Any] = loadmat(
            io.BytesIO(file) if isinstance(file, bytes) else file, squeeze_me=True
        )
    except Exception as error:  # scipy may raise anything at bytes that are no MATLAB file
        return str(error) or type(error).__name__
    return content


def is_image_name(name: str) -> bool:
    """Return whether a file's name ends like an image's."""
    return name.lower().endswith(SUFFIXES)
