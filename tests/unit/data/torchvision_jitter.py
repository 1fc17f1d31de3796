"""The drawn steps of colour jitter, by torchvision's functions on one image after another."""

from __future__ import annotations

from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from and_dist.data.augment import BRIGHTNESS, CONTRAST, HUE, SATURATION, JitterSteps


def by_torchvision(image_CHW: Tensor, steps: JitterSteps, at: int, grayscale_first: bool) -> Tensor:
    """An image in 0..1 after all steps of position `at`."""
    apply = {
        BRIGHTNESS: tv.adjust_brightness,
        CONTRAST: tv.adjust_contrast,
        SATURATION: tv.adjust_saturation,
        HUE: tv.adjust_hue,
    }
    values = [*steps.factors_B3[at], steps.shift_B[at]]
    if steps.is_gray_B[at] and grayscale_first:
        image_CHW = tv.rgb_to_grayscale(image_CHW, 3)
    for step in steps.order_B4[at].tolist():
        image_CHW = apply[step](image_CHW, values[step])
    if steps.is_gray_B[at] and not grayscale_first:
        image_CHW = tv.rgb_to_grayscale(image_CHW, 3)
    return image_CHW
