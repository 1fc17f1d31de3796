"""Load images by row as the network sees them, and encode them.

B images of a batch, Q rows that can be read, D feature.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from and_dist.config.schema import DataConfig
from and_dist.data.index import ImageIndex, LabelledImages
from and_dist.data.loader import FeatureLoader
from and_dist.data.stores import FileStore
from and_dist.data.unreadable import BadImages

U8 = NDArray[np.uint8]
IMAGES_PER_BATCH = 16


class ImageReader:
    """Read the images of one set through the test transform."""

    def __init__(self, images: LabelledImages, data: DataConfig, device: torch.device) -> None:
        """Open the images; those that cannot be read are left out silently."""
        self.images = images
        self._data = data
        bad = BadImages(images.index, "skip", say=lambda _: None, largest_share=1.0)
        self._loader = FeatureLoader(images.index, data, IMAGES_PER_BATCH, device, bad)
        self._mean_311 = torch.tensor(data.mean, device=device)[:, None, None]
        self._std_311 = torch.tensor(data.std, device=device)[:, None, None]

    def batches(self, rows: Iterable[int]) -> Iterator[tuple[list[int], Tensor]]:
        """Yield (rows, images [B, 3, H, W]) of the wanted rows that can be read, each row once."""
        wanted = np.array(list(dict.fromkeys(rows)), dtype=np.int64)
        for batch in self._loader.batches(wanted):
            is_read_B = batch.rows_B >= 0
            yield batch.rows_B[is_read_B].tolist(), batch.images_BCHW[is_read_B]

    def load(self, rows: Iterable[int]) -> dict[int, Tensor]:
        """Return images [3, H, W] by row, normalised as for the network; skip unreadable ones."""
        return {
            row: image_CHW
            for found, images_BCHW in self.batches(rows)
            for row, image_CHW in zip(found, images_BCHW, strict=True)
        }

    def pixels(self, image_CHW: Tensor) -> U8:
        """Return a normalised image as pixels [H, W, 3]."""
        scaled_CHW = (image_CHW * self._std_311 + self._mean_311) * 255
        return scaled_CHW.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()

    @torch.no_grad()
    def features(self, rows: Iterable[int], network: nn.Module) -> tuple[list[int], Tensor]:
        """Return the rows that can be read and their features [Q, D] on the CPU."""
        found, features = [], [torch.empty(0)]
        for rows_here, images_BCHW in self.batches(rows):
            found += rows_here
            features.append(network(images_BCHW).float().cpu())
        return found, torch.cat(features[1:] or features)

    def class_of(self, row: int) -> str | None:
        """Return the name of the image's class, or None without labels."""
        labels_N = self.images.labels_N
        return None if labels_N is None else self.images.class_names[int(labels_N[row])]

    def name_of(self, row: int) -> str:
        """Return the image's short name."""
        return short_name(self.images.index, row)


def short_name(index: ImageIndex, row: int) -> str:
    """Return an image's path below its folder, or its row number if it lies in an archive."""
    store = index.store
    return store.names[row] if isinstance(store, FileStore) else f"row {row}"
