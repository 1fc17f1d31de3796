"""Jitter the colours of whole batches as torchvision's ColorJitter does, with hue in HSV.

Brightness, contrast and saturation blend an image with black, with its mean luma and with its own
luma, and are clipped: each is one matrix product and one clamp. Hue is converted to a place on the
circle, shifted and converted back. Images of a batch are sorted by the place of hue in their order,
so that every step is one operation on many images.

Colours are in 0..255 until the last step, which normalises.

B images of a batch, or of a part of it; X pixels of an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from and_dist.config.schema import DataConfig
from and_dist.data.augment import CONTRAST, HUE, LUMA, SATURATION, TO_GRAY, JitterSteps, Views

CACHED_BYTES = 2_000_000
"""The bytes of float32 colours that a CPU's thread changes at once, which its cache holds: 3 images
of 224 pixels. 128 of these took 60 ms in such parts and 220 ms at once."""
NO_HUE = 4
"""The place of hue where it does not change: after all steps."""
HUES = np.array([0.0, 2.0, -2.0])
"""Hues of red, green and blue in sixths of the circle."""
SMALLEST_RANGE = 1e-6
"""The smallest range of a pixel's colours that is divided by; in 0..255 it cannot be seen."""


@dataclass(frozen=True)
class Plan:
    """Hold all that is done to the images of a batch, sorted so that neighbours are alike.

    The steps are those of jitter without hue, and the normalisation.
    """

    image_B: NDArray[np.int64]
    """Position of each in the batch."""
    place_B: NDArray[np.int64]
    """Number of the steps before hue, or NO_HUE."""
    mixes_B4: NDArray[np.bool_]
    """Whether the matrix of a step mixes colours; the others scale them."""
    has_contrast_B4: NDArray[np.bool_]
    """Whether a step adds a share of the mean luma."""
    maps_4B33: Tensor
    """Matrix of each step."""
    through_mean_4B1: Tensor
    """Factor of the mean luma that a step adds."""
    turns_B31: Tensor
    """Change of hue less the hue of red, green and blue, in sixths of the circle, in -3..3."""

    def parts(self, most: int) -> Iterator[slice]:
        """Yield the images in parts of at most `most`, in each of which hue has the same place."""
        bounds = np.searchsorted(self.place_B, np.arange(NO_HUE + 2)).tolist()
        for first, end in pairwise(bounds):
            for start in range(first, end, most):
                yield slice(start, min(start + most, end))


class Scratch(NamedTuple):
    """Hold memory that the steps of one part after another are computed in."""

    now_B3X: Tensor
    next_B3X: Tensor
    planes_3BX: Tensor

    def of(self, count: int) -> Scratch:
        """Return the memory for a part of `count` images."""
        return Scratch(self.now_B3X[:count], self.next_B3X[:count], self.planes_3BX[:, :count])


class HsvJitter:
    """Apply the drawn steps of views to images, and normalise them."""

    def __init__(self, config: DataConfig, device: torch.device) -> None:
        """Keep the normalisation, whether hue changes, and whether grayscale comes first."""
        self._config = config
        self._device = device
        self._std_31 = 255 * np.asarray(config.std)[:, None]
        self._offset_31 = self._tensor(-255 * np.asarray(config.mean)[:, None] / self._std_31)
        self._luma_13 = self._tensor(LUMA[None])
        self._jittered = torch.empty(0, device=device)

    def apply(self, views: Views, images_BCHW: Tensor) -> Tensor:
        """Return images of uint8 with each view's steps applied, normalised, as float32.

        On a CPU the result lies in one buffer, which the next call overwrites.
        """
        steps = views.colours
        assert isinstance(steps, JitterSteps)
        plan = self._plan(steps)
        images_B3X = images_BCHW.flatten(2)
        jittered_B3X = self._buffer(images_B3X)
        parts = list(plan.parts(self._most_at_once(images_B3X)))
        scratch = self._scratch(max(part.stop - part.start for part in parts), images_B3X.shape[2])
        for part in parts:
            colours_B3X = self._jitter(plan, part, images_B3X, scratch)
            # index_copy_ takes two to three times as long on a CPU.
            results = [jittered_B3X[at] for at in plan.image_B[part].tolist()]
            torch._foreach_copy_(results, list(colours_B3X))
        return jittered_B3X.view(images_BCHW.shape)

    def _jitter(self, plan: Plan, part: slice, images_B3X: Tensor, scratch: Scratch) -> Tensor:
        """Return some images, whose hue has the same place, after all steps."""
        image_B = torch.from_numpy(plan.image_B[part]).to(self._device, non_blocking=True)
        now_B3X, next_B3X, planes_3BX = scratch.of(len(image_B))
        now_B3X.copy_(torch.index_select(images_B3X, 0, image_B))
        place = plan.place_B[part.start]
        for step in range(4):
            if step == place:
                turn_hue(now_B3X, plan.turns_B31[part], next_B3X, planes_3BX)
                now_B3X, next_B3X = next_B3X, now_B3X
            offset_B11 = None
            if plan.has_contrast_B4[part, step].any():
                mean_B1 = (now_B3X.mean(2) * self._luma_13).sum(1, keepdim=True)
                offset_B11 = (plan.through_mean_4B1[step, part] * mean_B1)[:, :, None]
            maps_B33 = plan.maps_4B33[step, part]
            if plan.mixes_B4[part, step].any():
                torch.bmm(maps_B33, now_B3X, out=next_B3X)
                now_B3X, next_B3X = next_B3X, now_B3X
            else:  # a diagonal matrix: the same, to the bit, in a fifth of the time
                now_B3X *= maps_B33.diagonal(dim1=1, dim2=2)[:, :, None]
            if offset_B11 is not None:
                now_B3X += offset_B11
            if step < 3:
                now_B3X.clamp_(0, 255)
        now_B3X += self._offset_31
        return now_B3X

    def _plan(self, steps: JitterSteps) -> Plan:
        """Return the steps as matrices, and the images sorted by what their steps have to do."""
        count, identity = len(steps.shift_B), np.eye(3)
        gray_B33 = np.where(steps.is_gray_B[:, None, None], TO_GRAY, identity)
        order_B3 = steps.order_B4[steps.order_B4 != HUE].reshape(-1, 3)
        factors_B3 = np.take_along_axis(steps.factors_B3, order_B3, axis=1)
        has_contrast_B4 = np.pad(order_B3 == CONTRAST, ((0, 0), (0, 1)))
        mixes_B4 = np.pad(order_B3 == SATURATION, ((0, 0), (0, 1)))
        maps_4B33 = np.empty((4, count, 3, 3))
        maps_4B33[:3] = factors_B3.T[:, :, None, None] * identity
        share_B3 = mixes_B4[:, :3] * (1 - factors_B3)
        maps_4B33[:3] += share_B3.T[:, :, None, None] * TO_GRAY
        maps_4B33[3] = identity / self._std_31
        first = 0 if self._config.grayscale_first else 3
        maps_4B33[first] = maps_4B33[first] @ gray_B33
        mixes_B4[:, first] |= steps.is_gray_B
        # Hue may come before grayscale as part of the first map, and must not change gray then.
        is_still_B = steps.is_gray_B & self._config.grayscale_first
        shift_B = np.where(is_still_B, 0, steps.shift_B)
        turns_B3 = (6 * shift_B[:, None] - HUES + 3) % 6 - 3
        through_mean_B4 = has_contrast_B4 * (1 - np.pad(factors_B3, ((0, 0), (0, 1))))
        has_hue_B4 = (steps.order_B4 == HUE) & (self._config.hue > 0)
        place_B = np.where(has_hue_B4.any(axis=1), has_hue_B4.argmax(axis=1), NO_HUE)
        image_B = np.lexsort([*has_contrast_B4.T, *mixes_B4.T, place_B])
        return Plan(
            image_B,
            place_B[image_B],
            mixes_B4[image_B],
            has_contrast_B4[image_B],
            self._tensor(maps_4B33[:, image_B]),
            self._tensor(through_mean_B4.T[:, image_B, None]),
            self._tensor(turns_B3[image_B, :, None]),
        )

    def _most_at_once(self, images_B3X: Tensor) -> int:
        """Return the most images that are changed at once."""
        if self._device.type == "cuda":
            return len(images_B3X)
        bytes_an_image = 4 * images_B3X[0].numel()
        return max(1, CACHED_BYTES * torch.get_num_threads() // bytes_an_image)

    def _scratch(self, count: int, pixels: int) -> Scratch:
        """Return memory for `count` images."""
        now_B3X, next_B3X = torch.empty((2, count, 3, pixels), device=self._device)
        planes_3BX = torch.empty((3, count, pixels), device=self._device)
        return Scratch(now_B3X, next_B3X, planes_3BX)

    def _tensor(self, values: NDArray[np.float64]) -> Tensor:
        """Return float64 values as a float32 tensor on the device."""
        return torch.from_numpy(values.astype(np.float32)).to(self._device, non_blocking=True)

    def _buffer(self, images_B3X: Tensor) -> Tensor:
        """Return a float32 tensor [B, 3, X] for the jittered images."""
        shape = images_B3X.shape
        if self._device.type == "cuda":  # a step on the GPU may still read the last result
            return torch.empty(shape, device=self._device)
        if self._jittered.shape[1:] != shape[1:] or len(self._jittered) < len(images_B3X):
            self._jittered = torch.empty(shape)
        return self._jittered[: len(images_B3X)]


def turn_hue(colours_B3X: Tensor, turns_B31: Tensor, out_B3X: Tensor, planes_3BX: Tensor) -> None:
    """Write colours with their hue changed to `out_B3X`; saturation and value in HSV stay.

    Along HSV's hexagon the hue h of a pixel, in sixths of the circle from red, lies as far from red
    as 1 + (green + blue - red - least) / range, on green's side or on blue's. A channel rises and
    falls between the least and the greatest with its distance from h: least + range * clamp(2 -
    distance, 0, 1). `turns_B31` are to be added to h for the distance from each channel's own hue,
    and 2 - distance = |(|h + turn| - 3)| - 1, wherever on the circle h + turn lies.

    `planes_3BX` is memory to compute in; new memory for each operation took a tenth longer.
    """
    red_BX, green_BX, blue_BX = colours_B3X.unbind(1)
    least_BX, range_BX, hue_BX = planes_3BX
    spare_BX = out_B3X[:, 0]
    torch.minimum(red_BX, green_BX, out=least_BX)
    torch.minimum(least_BX, blue_BX, out=least_BX)
    torch.maximum(red_BX, green_BX, out=range_BX)
    torch.maximum(range_BX, blue_BX, out=range_BX)
    range_BX -= least_BX
    torch.add(green_BX, blue_BX, out=hue_BX)
    hue_BX -= red_BX
    hue_BX -= least_BX
    hue_BX /= torch.clamp(range_BX, min=SMALLEST_RANGE, out=spare_BX)
    hue_BX += 1
    hue_BX.copysign_(torch.sub(green_BX, blue_BX, out=spare_BX))
    torch.add(hue_BX[:, None], turns_B31, out=out_B3X)
    out_B3X.abs_().sub_(3).abs_().clamp_(1, 2)
    out_B3X *= range_BX[:, None]
    least_BX -= range_BX
    out_B3X += least_BX[:, None]
