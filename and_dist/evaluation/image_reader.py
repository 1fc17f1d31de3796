"""Images by row as the network sees them, small, inside the page itself. B batch."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from and_dist.config.schema import DataConfig
from and_dist.data.index import ImageIndex, LabelledImages
from and_dist.data.loader import FeatureLoader
from and_dist.data.stores import FileStore
from and_dist.data.unreadable import BadImages

U8 = NDArray[np.uint8]
IMAGES_PER_BATCH = 16
LARGEST = 64
MOST_BYTES = 7_500_000
"""Of all small images of a page."""
SIZES = ((LARGEST, 80), (48, 70), (32, 60), (24, 40))
"""Side and quality, the best first."""


class ImageReader:
    """The images of one set, seen through the test transform."""

    def __init__(self, images: LabelledImages, data: DataConfig, device: torch.device) -> None:
        self.images = images
        self._data = data
        bad = BadImages(images.index, "skip", say=lambda _: None, largest_share=1.0)
        self._loader = FeatureLoader(images.index, data, IMAGES_PER_BATCH, device, bad)
        self._mean_C11 = torch.tensor(data.mean, device=device)[:, None, None]
        self._std_C11 = torch.tensor(data.std, device=device)[:, None, None]

    def batches(self, rows: Iterable[int]) -> Iterator[tuple[list[int], Tensor]]:
        """(rows, images [B, 3, H, W]) of those that can be read."""
        wanted = np.array(list(dict.fromkeys(rows)), dtype=np.int64)
        for batch in self._loader.batches(wanted):
            is_read_B = batch.rows_B >= 0
            yield batch.rows_B[is_read_B].tolist(), batch.images_BCHW[is_read_B]

    def load(self, rows: Iterable[int]) -> dict[int, Tensor]:
        """[3, H, W] of every row that can be read, normalised as the network takes it."""
        return {
            row: image_CHW
            for found, images_BCHW in self.batches(rows)
            for row, image_CHW in zip(found, images_BCHW, strict=True)
        }

    def pixels(self, image_CHW: Tensor) -> U8:
        """[H, W, 3] of a normalised image."""
        scaled_CHW = (image_CHW * self._std_C11 + self._mean_C11) * 255
        return scaled_CHW.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()

    def thumbnails(self, rows: Iterable[int]) -> dict[int, Image.Image]:
        """At most LARGEST pixels high and wide; small images stay as they are."""
        return {
            row: shrink(Image.fromarray(self.pixels(image_CHW)), LARGEST)
            for found, images_BCHW in self.batches(rows)
            for row, image_CHW in zip(found, images_BCHW, strict=True)
        }

    @torch.no_grad()
    def features(self, rows: Iterable[int], network: nn.Module) -> tuple[list[int], Tensor]:
        """Rows that can be read, and [Q, D] of them."""
        found, features = [], [torch.empty(0)]
        for rows_here, images_BCHW in self.batches(rows):
            found += rows_here
            features.append(network(images_BCHW).float().cpu())
        return found, torch.cat(features[1:] or features)

    def class_of(self, row: int) -> str | None:
        labels_N = self.images.labels_N
        return None if labels_N is None else self.images.class_names[int(labels_N[row])]

    def name_of(self, row: int) -> str:
        return short_name(self.images.index, row)


def short_name(index: ImageIndex, row: int) -> str:
    """The image's name below its folder; of one in an archive, its row."""
    store = index.store
    return store.names[row] if isinstance(store, FileStore) else f"row {row}"


def shrink(image: Image.Image, side: int) -> Image.Image:
    smaller = image.copy()
    smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
    return smaller


def as_uri(image: Image.Image, quality: int = 80) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def as_uris(images: dict[str, Image.Image]) -> dict[str, str]:
    """As large and as good as MOST_BYTES allow for all together."""
    for side, quality in SIZES:
        uris = {key: as_uri(shrink(image, side), quality) for key, image in images.items()}
        if sum(map(len, uris.values())) <= MOST_BYTES:
            break
    return uris
