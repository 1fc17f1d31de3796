from __future__ import annotations

import time

import pytest
import torch

from and_dist.config.schema import EncoderConfig
from and_dist.models.encoders import ENCODERS, build_encoder
from and_dist.models.shapes import build_unfilled, check_image_size

SIDES = {
    "tiny": "25 to 32",
    "cifar_alexnet": "32 to 39",
    "alexnet": "223 to 254",
    "torchvision_alexnet": "63 and more",
}


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_a_side_fits_or_the_message_says_which_do(name: str) -> None:
    config = EncoderConfig(name=name, feature_dim=8)
    if name not in SIDES:
        for side in (8, 31, 224, 8192):
            check_image_size(config, side)
        return
    first, _, last = SIDES[name].partition(" ")
    said = f"does not fit encoder.name={name}, which takes images of {SIDES[name]} pixels"
    check_image_size(config, int(first))
    with pytest.raises(ValueError, match=f"data.image_size = {int(first) - 1} {said}"):
        check_image_size(config, int(first) - 1)
    if last.startswith("to"):
        check_image_size(config, int(last[3:]))
        with pytest.raises(ValueError, match=said):
            check_image_size(config, int(last[3:]) + 1)


@pytest.mark.parametrize(("name", "side"), [("tiny", 24), ("tiny", 25), ("cifar_alexnet", 40)])
def test_the_encoder_itself_agrees(name: str, side: int) -> None:
    config = EncoderConfig(name=name, feature_dim=8)
    try:
        check_image_size(config, side)
    except ValueError:
        with pytest.raises(RuntimeError):
            build_encoder(config, 0)(torch.rand(2, 3, side, side))
    else:
        assert build_encoder(config, 0)(torch.rand(2, 3, side, side)).shape == (2, 8)


@pytest.mark.parametrize("name", ["small", "resnet18", "torchvision_alexnet"])
def test_an_unfilled_encoder_has_the_tensors_of_one_that_is_drawn(name: str) -> None:
    config = EncoderConfig(name=name, feature_dim=8)
    drawn, unfilled = build_encoder(config, 0).state_dict(), build_unfilled(config).state_dict()
    assert [(n, t.shape, t.dtype, t.device) for n, t in drawn.items()] == [
        (n, t.shape, t.dtype, t.device) for n, t in unfilled.items()
    ]


def test_trying_takes_no_time_beside_a_start() -> None:
    began = time.process_time()
    for precision in ("float32", "bfloat16", "auto"):
        check_image_size(EncoderConfig(name="alexnet", precision=precision), 224)
    assert time.process_time() - began < 0.5


def test_a_misfit_is_told_at_once_in_any_precision() -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match="63 and more"):
        check_image_size(EncoderConfig(name="torchvision_alexnet", precision="bfloat16"), 32)
    assert time.process_time() - began < 5
