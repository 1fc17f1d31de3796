"""Show where a network looks: Grad-CAM of an image's similarity to its neighbour (figure 7).

Grad-CAM (Selvaraju et al., ICCV 2017) weighs the channels of a convolution by how much each, on
average over places, raises a target. This network has no class score to use as the target, so the
target is the cosine of the image's feature and its neighbour's.

B images, F channels of the convolution, h and w the height and width of its output.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from and_dist.models.encoders import Encoder, stages
from and_dist.models.stages import as_maps

U8 = NDArray[np.uint8]
RAMP = np.array([[48, 18, 59], [40, 130, 230], [60, 220, 140], [250, 200, 50], [190, 20, 10]])
"""The RGB colours from no attention to most attention."""
TOKENS = 3
"""The dimensions of the output of a block of a ViT: images, tokens, channels."""
LEAST, MOST = 0.15, 0.65
"""The weights of the colour over the image, at no attention and at most attention."""


def attend(encoder: Encoder, images_BCHW: Tensor, targets_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Return (maps [B, H, W] of the images' size, cosines [B]) by the last convolution.

    The highest value of a map is 1. A map is all zeros where nothing raises the cosine.
    """
    output, cosines_B = _forward(encoder, images_BCHW, targets_BD)
    (gradient,) = torch.autograd.grad(cosines_B.sum(), output)
    activations_BFhw, gradient_BFhw = as_maps(output), as_maps(gradient)
    weights_BF11 = gradient_BFhw.mean(dim=(2, 3), keepdim=True)
    maps_B1hw = (weights_BF11 * activations_BFhw).sum(dim=1, keepdim=True).relu()
    size = images_BCHW.shape[-2:]
    maps_BHW = functional.interpolate(maps_B1hw, size, mode="bilinear").squeeze(1).detach()
    highest_B11 = maps_BHW.amax(dim=(1, 2), keepdim=True)
    return maps_BHW / highest_B11.clamp(min=1e-12), cosines_B.detach()


def _forward(encoder: Encoder, images_BCHW: Tensor, targets_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Return (output of the last stage that has places, cosines [B] computed from it).

    The last block of a ViT passes on its class token alone: there, the one before it is taken.
    """
    *found, _ = stages(encoder).values()
    kept: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda *call: kept.append(call[2])) for m in found[-2:]]
    try:
        features_BD = encoder(images_BCHW)
    finally:
        for hook in hooks:
            hook.remove()
    has_tokens = kept[-1].ndim == TOKENS and len(kept) > 1
    return kept[-2 if has_tokens else -1], (features_BD * targets_BD).sum(dim=1)


def overlay(pixels: U8, map_HW: Tensor) -> Image.Image:
    """Return an image under the colours of its map."""
    heat_HW1 = map_HW.float().cpu().numpy()[..., None]
    stops = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(heat_HW1[..., 0], stops, RAMP[:, channel]) for channel in range(3)]
    weight_HW1 = LEAST + (MOST - LEAST) * heat_HW1
    mixed = (1 - weight_HW1) * pixels + weight_HW1 * np.stack(channels, axis=-1)
    return Image.fromarray(mixed.round().astype(np.uint8))
