"""Describe one split as an importer finds it: where its images lie, and their classes apart.

N all rows of the split.
"""

from __future__ import annotations

import io
import math
import os
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
from and_dist.utils.plain_files import MOST_BYTES, check_regular, read_regular, too_long

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
MOST_MAT_BYTES = 2**32
"""The most bytes of a MATLAB file: those of version 5 count the bytes of an array in 32 bits."""
MAT_WORK_BYTES = 10**9
"""The memory that reading a MATLAB file takes beside its arrays."""
MAT_COPIES = 3
"""The number of times that an array is in memory while it is read."""


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
    try:
        if isinstance(file, Path) and (length := check_regular(file)) > MOST_MAT_BYTES:
            raise too_long(length, MOST_MAT_BYTES, file)
    except OSError as error:
        raise ValueError(f"{name} is no {kind}: {error.strerror or error}") from None
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
    from scipy.io import loadmat, whosmat

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no file behind
    try:
        arrays = whosmat(io.BytesIO(file) if isinstance(file, bytes) else file)
        stated = sum(math.prod(shape) for _, shape, _ in arrays)
        # Compressed arrays can have a thousand times the bytes of their file, and may state others
        # than they have.
        if stated > MOST_MAT_BYTES:
            return f"it states {stated:,} numbers"
        _limit_memory(MAT_COPIES * stated + MAT_WORK_BYTES)
        content: dict[str, Any] = loadmat(
            io.BytesIO(file) if isinstance(file, bytes) else file, squeeze_me=True
        )
    except MemoryError:
        return "it has more numbers than it states"
    except Exception as error:  # scipy may raise anything at bytes that are no MATLAB file
        return str(error) or type(error).__name__
    return content


def _limit_memory(more: int) -> None:
    """Let this process take no more than some bytes beside what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + more
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))


def read_source(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Return the content of a file of a data set.

    Raise ValueError unless it is a regular file of at most `most_bytes` that can be read.
    """
    try:
        return read_regular(path, most_bytes)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None


def read_table(path: Path) -> str:
    """Return a table of a data set as text; raise ValueError if it is none."""
    try:
        return read_source(path).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from None


def check_room(path: Path, num_bytes: int) -> None:
    """Raise ValueError if a file states more than this machine has memory for."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if num_bytes > memory:
        raise ValueError(
            f"{path} states images that take {num_bytes / 1e9:,.0f} GB of memory, and this machine "
            f"has {memory / 1e9:,.0f}"
        )


def is_image_name(name: str) -> bool:
    """Return whether a file's name ends like an image's."""
    return name.lower().endswith(SUFFIXES)
