"""What stands in a listing, by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from and_dist.data.importers import find_listings
from and_dist.data.importers.listing import Files, Listing, Members, Pixels
from and_dist.data.stores import FileReader


def contents(listing: Listing) -> list[bytes]:
    """The bytes of every image."""
    match listing.content:
        case Files(root, names):
            return [(root / name).read_bytes() for name in names]
        case Members(archives, file_N, offset_N, length_N):
            reader = FileReader(archives)
            places = zip(file_N.tolist(), offset_N.tolist(), length_N.tolist(), strict=True)
            return [reader.read(*place) for place in places]
    raise AssertionError("pixels have no encoded bytes")


def pixels(listing: Listing) -> np.ndarray:
    assert isinstance(listing.content, Pixels)
    return listing.content.images_NHWC


def labels(listing: Listing) -> list[int]:
    assert listing.labels_N is not None
    assert listing.labels_N.dtype == np.int64
    return list(listing.labels_N.tolist())


def find_pair(source: Path) -> tuple[Listing, Listing]:
    train, test = find_listings(source)
    assert (train.split, test.split) == ("train", "test")
    return train, test
