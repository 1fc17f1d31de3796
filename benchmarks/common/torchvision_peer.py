"""The peer of our loaders: torchvision v2 in a DataLoader, as its documentation has one use it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import v2

from and_dist.config.schema import DataConfig

Source = Path | NDArray[np.uint8]


class TorchvisionImages(Dataset[tuple[torch.Tensor, int]]):
    """(image, row); of PIL images, or of uint8 tensors decoded by torchvision's own libjpeg."""

    def __init__(self, sources: Sequence[Source], transform: v2.Compose, on_tensors: bool) -> None:
        self.sources, self.transform, self.on_tensors = sources, transform, on_tensors

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        source = self.sources[row]
        image: Any
        if not isinstance(source, Path):
            image = Image.fromarray(source)
        elif self.on_tensors:
            image = decode_image(read_file(str(source)), ImageReadMode.RGB)
        else:
            image = Image.open(source).convert("RGB")
        return self.transform(image), row


def training_transform(config: DataConfig) -> v2.Compose:
    gray, jitter = config.grayscale, config.jitter
    return v2.Compose(
        [
            v2.RandomResizedCrop(config.image_size, scale=config.crop_area, antialias=True),
            v2.RandomGrayscale(gray),
            v2.ColorJitter(jitter, jitter, jitter, config.hue),
            *([v2.RandomHorizontalFlip()] if config.flip else []),
            *to_normal(config),
        ]
    )


def test_transform(config: DataConfig) -> v2.Compose:
    assert config.test_resize is not None
    return v2.Compose(
        [
            v2.Resize(config.test_resize, antialias=True),
            v2.CenterCrop(config.image_size),
            *to_normal(config),
        ]
    )


def to_normal(config: DataConfig) -> list[v2.Transform]:
    to_float = v2.ToDtype(torch.float32, scale=True)
    return [v2.ToImage(), to_float, v2.Normalize(config.mean, config.std)]


def open_loader(
    images: TorchvisionImages, batch_size: int, workers: int, shuffle: bool
) -> DataLoader[tuple[torch.Tensor, int]]:
    """Its memory is pinned where there is a GPU to copy to."""
    return DataLoader(
        images,
        batch_size,
        shuffle=shuffle,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=2 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
