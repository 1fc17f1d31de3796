"""Open a trained run for use in one's own code: its encoder, its bank, its images.

B given images, S all rows, D feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from and_dist.checkpoint.reader import (
    OpenedCheckpoint,
    find_images,
    load_bank,
    load_encoder,
    refuse_corrupt,
)
from and_dist.config.schema import Config
from and_dist.data.datasets import index_named
from and_dist.data.index import ImageIndex, LabelledImages
from and_dist.data.stores import U8, FileStore, MemoryStore
from and_dist.distributed.world import lone_world
from and_dist.evaluation.image_reader import ImageReader
from and_dist.evaluation.neighbour_query import Neighbour, describe_neighbour
from and_dist.method.memory_bank import MemoryBank
from and_dist.method.neighbour_search import ShardSearch
from and_dist.models.encoders import Encoder

GivenImage = str | Path | Image.Image | U8
"""A file, a picture of Pillow's, or pixels [H, W, 3] as uint8."""


class LoadedRun:
    """Holds a trained run on one device: encoder, bank, preprocessing, neighbours.

    Example:
        >>> run = and_dist.load("runs/demo")
        >>> run.encoder(run.preprocess(["mine.jpg"])).shape
        torch.Size([1, 128])
        >>> [near] = run.neighbours(["mine.jpg"], count=3)
        >>> len(near)
        3
    """

    def __init__(self, opened: OpenedCheckpoint, device: torch.device) -> None:
        """Load the encoder; raise ValueError if the checkpoint is corrupt."""
        self._world = lone_world(device)
        refuse_corrupt(opened, self._world)
        self._opened = opened
        self.encoder: Encoder = load_encoder(opened, self._world)
        """Maps preprocessed images [B, 3, H, W] to features [B, D] of unit norm."""

    def __repr__(self) -> str:
        """Return the run's name, its checkpoint and its size."""
        encoder = self.config.encoder
        return (
            f"<run {self.config.name}, checkpoint {self._opened.checkpoint.name}: {encoder.name}, "
            f"{self._opened.num_rows:,} rows of {encoder.feature_dim} features>"
        )

    @property
    def config(self) -> Config:
        """Return the config that the run was trained with."""
        return self._opened.config

    @cached_property
    def bank(self) -> MemoryBank:
        """Return the whole bank, [S, D] in `bank.features_SD`; it is read when it is first used."""
        return load_bank(self._opened, self._world)

    @cached_property
    def images(self) -> LabelledImages:
        """Return the training images; raise ValueError if they are gone or have changed."""
        reasons: list[str] = []
        found = find_images(self._opened, "training images", reasons.append)
        if found is None:
            raise ValueError("; ".join(reasons))
        return found

    def preprocess(self, images: Sequence[GivenImage]) -> Tensor:
        """Return images [B, 3, H, W] as the evaluation sees them: resized, cropped, normalised.

        Raise ValueError for one that cannot be read.
        """
        reader = self._reader_of(images)
        found = reader.load(range(len(images)))
        if missing := set(range(len(images))) - set(found):
            raise ValueError(f"image {min(missing)} of {len(images)} cannot be decoded")
        return torch.stack([found[at] for at in range(len(images))])

    @torch.no_grad()
    def embed(self, images: Sequence[GivenImage]) -> Tensor:
        """Return the features [B, D] of images, of unit norm; batches are read one by one."""
        found, features_BD = self._reader_of(images).features(range(len(images)), self.encoder)
        if missing := set(range(len(images))) - set(found):
            raise ValueError(f"image {min(missing)} of {len(images)} cannot be decoded")
        return features_BD

    def neighbours(self, images: Sequence[GivenImage], count: int = 5) -> list[list[Neighbour]]:
        """Return for each image the `count` nearest training images, nearest first.

        Raise ValueError unless `count` is between 1 and the number of rows.
        """
        if not 1 <= count <= self._opened.num_rows:
            raise ValueError(f"count={count}: the run has {self._opened.num_rows} rows")
        search = ShardSearch(self.bank.features_SD.float(), 0, count)
        features_BD = self.embed(images).to(self.bank.features_SD.device)
        nobody_B = torch.full((len(features_BD),), -1, device=features_BD.device)
        nearest = search.nearest(features_BD, nobody_B)
        known = self._known
        return [
            [describe_neighbour(known, *pair) for pair in zip(rows, cosines, strict=True)]
            for rows, cosines in zip(
                nearest.rows_QK.tolist(), nearest.similarity_QK.tolist(), strict=True
            )
        ]

    def files(self, rows: Sequence[int]) -> list[str]:
        """Return where training images lie: a path each, or file and offset in an archive."""
        self._check_rows(rows)
        store = self.images.index.store
        if isinstance(store, FileStore):
            return [str(Path(store.root) / store.names[row]) for row in rows]
        return [store.name(row) for row in rows]

    def pictures(self, rows: Sequence[int]) -> list[Image.Image]:
        """Return training images as the network sees them, without the normalisation."""
        self._check_rows(rows)
        reader = ImageReader(self.images, self.config.data, self._world.device)
        found = reader.load(rows)
        if unread := set(rows) - set(found):
            raise ValueError(f"image {min(unread)} cannot be decoded")
        return [Image.fromarray(reader.pixels(found[row])) for row in rows]

    def _check_rows(self, rows: Sequence[int]) -> None:
        """Raise ValueError for a row that the run does not have."""
        for row in rows:
            if not 0 <= row < self._opened.num_rows:
                raise ValueError(f"row {row}: the run has rows 0 to {self._opened.num_rows - 1}")

    @cached_property
    def _known(self) -> ImageReader | None:
        """Return a reader of the training images, None if they are not here."""
        try:
            return ImageReader(self.images, self.config.data, self._world.device)
        except ValueError:
            return None

    def _reader_of(self, images: Sequence[GivenImage]) -> ImageReader:
        """Return a reader of the given images; raise ValueError if there are none."""
        if len(images) == 0:
            raise ValueError("no images were given")
        paths = [Path(image) for image in images if isinstance(image, (str, Path))]
        if 0 < len(paths) < len(images):
            raise ValueError("give files alone, or pictures and pixels alone")
        found = (
            index_named(paths, self.config.data.decode_mb)
            if paths
            else LabelledImages(_index_pixels(images))
        )
        return ImageReader(found, self.config.data, self._world.device)


def _index_pixels(images: Sequence[GivenImage]) -> ImageIndex:
    """Return an index of pictures and pixels; raise ValueError for pixels of another form."""
    pixels = [
        np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        for image in images
    ]
    for at, one in enumerate(pixels):
        if one.dtype != np.uint8 or one.ndim != 3 or one.shape[2] != 3 or one.size == 0:
            raise ValueError(
                f"image {at} is {one.dtype} of shape {list(one.shape)}; pixels are uint8 [H, W, 3]"
            )
    heights_N = np.array([one.shape[0] for one in pixels], dtype=np.int32)
    widths_N = np.array([one.shape[1] for one in pixels], dtype=np.int32)
    sizes = [one.size for one in pixels]
    offset_N = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
    block = np.concatenate([one.reshape(-1) for one in pixels])
    store = MemoryStore(block, offset_N, heights_N, widths_N, "the given images")
    return ImageIndex(store, heights_N, widths_N, "given")
