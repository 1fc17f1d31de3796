"""Look at images that somebody wants to train on: how many, how large, in which folders.

X images that are measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from and_dist.data.datasets import NOT_REPORTED, load_images
from and_dist.data.importers.folders import SPLITS, list_folder
from and_dist.data.importers.listing import Files
from and_dist.data.measure import measure
from and_dist.utils.progress import Reporter

MOST_MEASURED = 400
"""The number of images whose headers are read, evenly spread over all."""


@dataclass(frozen=True)
class Survey:
    """Hold what is found where a user's images lie."""

    train: str
    """The folder that is trained on, for data.train."""
    test: str | None
    """The folder of test images beside it, for data.test."""
    num_images: int
    class_names: tuple[str, ...]
    height: int
    """Median height of the images."""
    width: int
    """Median width of the images."""
    is_encoded: bool
    """Whether images are decoded when they are read."""

    @property
    def shorter(self) -> int:
        """Return the shorter of the two sides."""
        return min(self.height, self.width)

    def describe(self) -> str:
        """Describe the images in one line."""
        classes = f" in {len(self.class_names):,} class folders" if self.class_names else ""
        sides = f"{self.width} x {self.height} pixels"
        return f"{self.train}: {self.num_images:,} images{classes}, {sides} (median)"


def find_splits(source: str) -> tuple[str, str | None]:
    """Return the folder to train on and the one to test with, if there is one.

    A folder that holds train/, and beside it no folders but validation and test images, is taken
    apart, whether it was prepared or not.
    """
    folder = Path(source)
    source = str(folder)
    if not folder.is_dir():
        return source, None
    inside = {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."}
    if "train" not in inside or not inside <= SPLITS.keys():
        return source, None
    test = next((name for name in SPLITS if name in inside and SPLITS[name] == "test"), None)
    return str(folder / "train"), None if test is None else str(folder / test)


def survey(source: str, limit: int | None = None, reporter: Reporter = NOT_REPORTED) -> Survey:
    """Count the images of a folder, a prepared set or an embedded one, and measure some of them.

    Raise ValueError if there are none.
    """
    train, test = find_splits(source)
    folder = Path(train)
    if not folder.is_dir() or (folder / "manifest.json").exists():
        images = load_images(train, limit, "data.train")
        index = images.index
        sides = _median(index.heights_N), _median(index.widths_N)
        is_encoded = index.store.kind == "encoded"
        return Survey(train, test, len(index), images.class_names, *sides, is_encoded)
    try:
        reporter.start(f"{train}: listing images", None)
        listing = list_folder(folder, "train", limit, reporter.advance)
    except ValueError as error:
        raise ValueError(f"data.train={train}: {error}") from None
    assert isinstance(listing.content, Files)
    rows = np.unique(np.linspace(0, len(listing) - 1, MOST_MEASURED).astype(np.int64))
    some = measure(Files(listing.content.root, listing.content.names.select(rows)), workers=1)
    is_good_X = some.heights_N > 0
    if not is_good_X.any():
        raise ValueError(f"data.train={train}: {len(rows)} of its files are no images")
    sides = _median(some.heights_N[is_good_X]), _median(some.widths_N[is_good_X])
    return Survey(train, test, len(listing), listing.class_names, *sides, is_encoded=True)


def _median(sides_X: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> int:
    """Return the median of the images' sides."""
    return int(np.median(sides_X))
