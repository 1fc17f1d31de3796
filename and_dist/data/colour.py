"""Apply colour maps to whole batches, after DALI has normalised them, by one matrix product.

A map (augment.AffineMaps) acts on colours in 0..255, and the images are normalised. Both are
affine, so they compose into one map of normalised colours. DALI's own affine operator takes seven
times as long on a CPU.

B images of a batch, X pixels of an image.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from and_dist.config.schema import DataConfig
from and_dist.data.augment import AffineMaps, Views


class ColourMaps:
    """Apply the colour maps of views to normalised images, clamped to colours in 0..255."""

    def __init__(self, config: DataConfig, device: torch.device) -> None:
        """Keep the normalisation."""
        self._mean_3 = 255 * np.asarray(config.mean)
        self._std_3 = 255 * np.asarray(config.std)
        self._bounds_32 = np.stack([0 - self._mean_3, 255 - self._mean_3], 1) / self._std_3[:, None]
        self._device = device
        self._mapped = torch.empty(0, device=device)

    def apply(self, views: Views, images_BCHW: Tensor, mean_colours_B3: Tensor) -> Tensor:
        """Return the images [B, 3, H, W] with each view's colour map applied.

        `mean_colours_B3` are the mean colours of the images before normalisation, in 0..255. On a
        CPU the result lies in one buffer, which the next call overwrites.
        """
        maps = views.colours
        assert isinstance(maps, AffineMaps)
        # The images are normalised, x = (colour - mean) / std, but the maps act on colours: with
        # mean and std folded in, the map is direct @ x + offset + through_mean @ mean colour.
        direct_B33 = maps.direct_B33 * (self._std_3 / self._std_3[:, None])
        offset_B3 = (maps.direct_B33 @ self._mean_3 - self._mean_3) / self._std_3
        through_mean_B33 = maps.through_mean_B33 / self._std_3[:, None]
        shift_B31 = torch.baddbmm(
            self._tensor(offset_B3)[:, :, None],
            self._tensor(through_mean_B33),
            mean_colours_B3[:, :, None],
        )
        images_B3X = images_BCHW.flatten(2)
        mapped_B3X = self._buffer(images_B3X)
        torch.baddbmm(shift_B31, self._tensor(direct_B33), images_B3X, out=mapped_B3X)
        for channel, (low, high) in enumerate(self._bounds_32.tolist()):
            mapped_B3X[:, channel].clamp_(low, high)
        return mapped_B3X.view(images_BCHW.shape)

    def _tensor(self, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Tensor:
        """Return float64 values as a float32 tensor on the device."""
        return torch.from_numpy(values.astype(np.float32)).to(self._device, non_blocking=True)

    def _buffer(self, images_B3X: Tensor) -> Tensor:
        """Return a tensor [B, 3, X] for the mapped images."""
        if self._device.type == "cuda":
            return torch.empty_like(images_B3X)  # a step on the GPU may still read the last result
        if self._mapped.shape[1:] != images_B3X.shape[1:] or len(self._mapped) < len(images_B3X):
            self._mapped = torch.empty_like(images_B3X)
        return self._mapped[: len(images_B3X)]
