"""Decode every image once, as training does, and find those that fail."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from and_dist.config.schema import DataConfig
from and_dist.data.index import ImageIndex
from and_dist.data.loader import FeatureLoader
from and_dist.data.order import Rows
from and_dist.data.unreadable import AllBad, BadImages

IMAGES_PER_BATCH = 64
"""The number of images that are decoded at a time."""


def find_undecodable(
    index: ImageIndex, rows: Rows, progress: Callable[[int], None]
) -> dict[int, str]:
    """Return {row: reason} of the given rows that DALI cannot decode."""
    bad = BadImages(index, "skip", lambda _: None, largest_share=1.0)
    # The output is thrown away, so a small one saves time.
    config = DataConfig(image_size=16)
    loader = FeatureLoader(index, config, IMAGES_PER_BATCH, torch.device("cpu"), bad)
    with contextlib.suppress(AllBad):
        for batch in loader.batches(rows):
            progress(len(batch.rows_B))
    return bad.reasons
