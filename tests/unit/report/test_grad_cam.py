"""Grad-CAM against a direct computation, and where it looks after training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from and_dist.config.schema import EncoderConfig
from and_dist.models.encoders import ENCODERS, Encoder, build_encoder
from and_dist.report.grad_cam import attend, overlay

STEP = 1e-6


def small_problem(name: str, side: int = 32) -> tuple[Encoder, Tensor, Tensor]:
    encoder = build_encoder(EncoderConfig(name=name, feature_dim=8), seed=3).double().eval()
    generator = torch.Generator().manual_seed(5)
    images_BCHW = torch.rand(2, 3, side, side, generator=generator, dtype=torch.float64)
    targets_BD = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    return encoder, images_BCHW, functional.normalize(targets_BD, dim=1)


def map_by_hand(encoder: Encoder, image_CHW: Tensor, target_D: Tensor) -> Tensor:
    """[h, w] of the tiny network: how much the cosine rises with a channel, by small differences,
    times the channel, where that is above zero."""
    assert isinstance(encoder.trunk, nn.Sequential)
    convolutions, rest = encoder.trunk[:-1], encoder.trunk[-1:]
    with torch.no_grad():
        activations_Chw = convolutions(image_CHW[None])[0]

        def cosine(of_Chw: Tensor) -> float:
            features_BD = functional.normalize(encoder.head(rest(of_Chw[None])), dim=1)
            return float(features_BD[0] @ target_D)

        channels, height, width = activations_Chw.shape
        map_hw = torch.zeros(height, width, dtype=torch.float64)
        for channel in range(channels):
            raised_Chw, lowered_Chw = activations_Chw.clone(), activations_Chw.clone()
            raised_Chw[channel] += STEP
            lowered_Chw[channel] -= STEP
            rise = (cosine(raised_Chw) - cosine(lowered_Chw)) / (2 * STEP)
            map_hw += rise / (height * width) * activations_Chw[channel]
    return map_hw.relu()


def test_the_map_is_that_of_a_direct_computation() -> None:
    encoder, images_BCHW, targets_BD = small_problem("tiny")
    maps_BHW, cosines_B = attend(encoder, images_BCHW, targets_BD)
    for image_CHW, target_D, map_HW in zip(images_BCHW, targets_BD, maps_BHW, strict=True):
        direct_hw = map_by_hand(encoder, image_CHW, target_D)
        enlarged_HW = functional.interpolate(direct_hw[None, None], (32, 32), mode="bilinear")[0, 0]
        assert direct_hw.max() > 0
        torch.testing.assert_close(map_HW, enlarged_HW / enlarged_HW.max(), atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        expected_B = (encoder(images_BCHW) * targets_BD).sum(dim=1)
    torch.testing.assert_close(cosines_B, expected_B)


def test_what_lowers_the_cosine_is_not_looked_at() -> None:
    """Against its own feature an image rises where it falls against the opposite one."""
    encoder, images_BCHW, targets_BD = small_problem("tiny")
    towards_BHW, _ = attend(encoder, images_BCHW, targets_BD)
    away_BHW, _ = attend(encoder, images_BCHW, -targets_BD)
    both = (towards_BHW.amax(dim=(1, 2)) > 0) & (away_BHW.amax(dim=(1, 2)) > 0)
    assert both.all()
    assert (towards_BHW - away_BHW).abs().amax() > 0.5


@pytest.mark.parametrize("name", ["small", "cifar_alexnet", "cifar_resnet18", "alexnet"])
def test_every_kind_of_network_has_a_last_convolution_to_look_at(name: str) -> None:
    side = 224 if name == "alexnet" else 32
    encoder, images_BCHW, targets_BD = small_problem(name, side)
    maps_BHW, _ = attend(encoder, images_BCHW, targets_BD)
    assert maps_BHW.shape == (2, side, side)
    assert maps_BHW.isfinite().all()
    assert maps_BHW.amin() >= 0
    assert maps_BHW.amax() == pytest.approx(1)
    assert not encoder.trunk._forward_hooks
    assert name in ENCODERS


def test_a_network_of_bfloat16_is_looked_at_too() -> None:
    config = EncoderConfig(name="small", feature_dim=8, precision="bfloat16")
    encoder, images_BCHW = build_encoder(config, 3).eval(), torch.rand(2, 3, 32, 32)
    targets_BD = functional.normalize(torch.randn(2, 8), dim=1)
    maps_BHW, _ = attend(encoder, images_BCHW, targets_BD)
    assert np.asarray(overlay(np.zeros((32, 32, 3), np.uint8), maps_BHW[0])).shape == (32, 32, 3)


def test_an_overlay_keeps_what_is_not_looked_at() -> None:
    pixels = np.full((4, 4, 3), 200, np.uint8)
    map_HW = torch.zeros(4, 4)
    map_HW[0, 0] = 1
    shown = np.asarray(overlay(pixels, map_HW)).astype(int)
    assert np.abs(shown[1:, 1:] - 200).max() <= 0.15 * 200
    assert np.abs(shown[0, 0] - [190, 20, 10]).max() <= 0.35 * 200
