"""Find the splits of published and private layouts of data sets.

A new layout takes a function and a row of IMPORTERS.

An importer looks at a path and returns the splits it finds there, or None if the layout is not its
own. It raises ValueError if the layout is its own and something about it is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from and_dist.data.importers.archives import find_ilsvrc_tars, find_tar_shards
from and_dist.data.importers.folders import (
    find_class_folders,
    find_cub,
    find_dogs,
    find_train_and_val,
)
from and_dist.data.importers.listing import Listing
from and_dist.data.importers.pixels import find_cifar, find_idx, find_svhn

IMPORTERS: dict[str, Callable[[Path], list[Listing] | None]] = {
    "CIFAR-10 or CIFAR-100 (python or binary version)": find_cifar,
    "SVHN (train_32x32.mat, test_32x32.mat)": find_svhn,
    "MNIST-style idx files, gz or not": find_idx,
    "ILSVRC2012 tars with devkit or synsets.txt and ground truth": find_ilsvrc_tars,
    "CUB-200-2011": find_cub,
    "Stanford Dogs": find_dogs,
    "tar shards (WebDataset)": find_tar_shards,
    "train/ and val/ (or test/) of image folders": find_train_and_val,
    "class folders, or a flat folder of images": find_class_folders,
}
"""Importers by the layout that they read, tried in this order."""


def find_listings(source: Path) -> list[Listing]:
    """Return the splits at a path; raise ValueError if there are none or one is empty."""
    if not source.exists():
        raise ValueError(f"{source} does not exist")
    for find in IMPORTERS.values():
        found = find(source)
        if found is not None:
            empty = [listing.split for listing in found if len(listing) == 0]
            if empty:
                raise ValueError(f"{source} has no image in its {empty[0]} split")
            return found
    raise ValueError(f"{source} is none of: {'; '.join(IMPORTERS)}")
