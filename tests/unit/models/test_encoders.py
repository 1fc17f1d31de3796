from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch.nn import functional
from torchvision import models

from and_dist.config.schema import EncoderConfig
from and_dist.data.shapes import draw_shapes
from and_dist.data.stores import MemoryStore
from and_dist.models.encoders import ENCODERS, build_encoder

PIXELS = {"small": 32, "tiny": 32} | {name: 32 for name in ENCODERS if name.startswith("cifar")}


@pytest.mark.parametrize("name", ENCODERS)
def test_features_have_unit_norm(name: str) -> None:
    side = PIXELS.get(name, 224)
    features_BD = build_encoder(EncoderConfig(name=name), seed=0)(torch.randn(2, 3, side, side))
    assert features_BD.shape == (2, 128)
    torch.testing.assert_close(features_BD.norm(dim=1), torch.ones(2))


def test_resnet18_for_cifar_has_the_published_size() -> None:
    encoder = build_encoder(EncoderConfig(name="cifar_resnet18"), seed=0)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 11_234_496


@pytest.mark.parametrize(
    ("name", "init", "theirs"),
    [
        ("resnet18", "he_fan_out", models.resnet18),
        ("resnet50", "he_fan_out", models.resnet50),
        ("resnet101", "he_fan_out", models.resnet101),
        ("torchvision_alexnet", "pytorch", models.alexnet),
    ],
)
def test_trunks_are_torchvisions_to_the_bit(
    name: str, init: Literal["pytorch", "he_fan_out"], theirs: Callable[[], torch.nn.Module]
) -> None:
    """Their first weights, what is drawn after them, and their outputs while training."""
    trunk = build_encoder(EncoderConfig(name=name, init=init), seed=3).trunk
    torch.manual_seed(3)
    expected = theirs()
    last = "classifier.6" if name == "torchvision_alexnet" else "fc"
    expected.set_submodule(last, torch.nn.Identity())
    weights, expected_weights = trunk.state_dict(), expected.state_dict()
    assert list(weights) == list(expected_weights)
    assert all(torch.equal(weights[name], expected_weights[name]) for name in weights)
    images_BCHW = torch.randn(2, 3, 64, 64)
    outputs = []
    for network in (trunk, expected):
        torch.manual_seed(4)
        outputs.append(network(images_BCHW))
    assert torch.equal(*outputs)


def test_the_head_is_drawn_as_it_always_was() -> None:
    """After the last layer that torchvision draws."""
    head = build_encoder(EncoderConfig(name="resnet18", init="he_fan_out"), seed=3).head
    torch.manual_seed(3)
    models.resnet18()
    assert torch.equal(head.weight, torch.nn.Linear(512, 128).weight)


@pytest.mark.parametrize("name", ["cifar_resnet18", "resnet50", "small"])
def test_first_weights_are_pytorchs_unless_drawn_by_fan_out(name: str) -> None:
    encoder = build_encoder(EncoderConfig(name=name), seed=3)
    by_fan_out = build_encoder(EncoderConfig(name=name, init="he_fan_out"), seed=3)
    for ours, drawn in zip(convolutions(encoder), convolutions(by_fan_out), strict=True):
        width = ours.weight[0].numel()
        # Uniform within 1 / sqrt(fan-in) by default, and normal with variance 2 / fan-out.
        assert ours.weight.abs().max() <= width**-0.5
        spread = (2 / drawn.weight[:, 0].numel()) ** 0.5
        assert abs(drawn.weight.std() / spread - 1) < 4 / drawn.weight.numel() ** 0.5


def convolutions(encoder: torch.nn.Module) -> list[torch.nn.Conv2d]:
    return [module for module in encoder.modules() if isinstance(module, torch.nn.Conv2d)]


def test_alexnet_has_the_cells_the_linear_probes_expect() -> None:
    shapes = []
    encoder = build_encoder(EncoderConfig(name="alexnet"), seed=0)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, __, output: shapes.append(output.shape[1:]))
    encoder(torch.randn(2, 3, 224, 224))
    expected = [(96, 55, 55), (256, 27, 27), (384, 13, 13), (384, 13, 13), (256, 13, 13)]
    assert [tuple(shape) for shape in shapes] == expected


def test_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build_encoder(EncoderConfig(name="tiny", feature_dim=16), seed=4).state_dict()
    torch.manual_seed(2)
    second = build_encoder(EncoderConfig(name="tiny", feature_dim=16), seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@torch.no_grad()
@pytest.mark.parametrize(("channels_last", "bound"), [(False, 1e-6), (True, 2e-5)])
@pytest.mark.parametrize(("name", "count"), [("small", 64), ("cifar_resnet18", 16)])
def test_features_by_batch_norm_are_those_of_float64(
    name: str, count: int, channels_last: bool, bound: float
) -> None:
    """Seen: 3e-7. Where channels lie last it grows with the batch, to 8e-6 at 256 images."""
    encoder = build_encoder(EncoderConfig(name=name, channels_last=channels_last), seed=0)
    store = draw_shapes("train", count).index.store
    assert isinstance(store, MemoryStore)
    pixels = torch.from_numpy(store.block.reshape(count, 32, 32, 3).copy())
    images_BCHW = (pixels.permute(0, 3, 1, 2) / 255 - 0.45) / 0.225
    exact = copy.deepcopy(encoder).double()
    expected_BD = functional.normalize(exact.head(exact.trunk(images_BCHW.double())), dim=1)
    assert (encoder(images_BCHW) - expected_BD).abs().max() < bound


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'alexnt' is not one of: .*alexnet"):
        build_encoder(EncoderConfig(name="alexnt"), seed=0)


def test_bfloat16_is_of_activations_not_of_weights_or_features() -> None:
    exact, mixed = (
        build_encoder(EncoderConfig(name="small", precision=precision), seed=0)
        for precision in ("float32", "bfloat16")
    )
    images_BCHW = torch.randn(8, 3, 32, 32)
    features_BD = mixed(images_BCHW.bfloat16())
    assert features_BD.dtype == torch.float32
    assert {parameter.dtype for parameter in mixed.parameters()} == {torch.float32}
    cosine_B = (features_BD * exact(images_BCHW)).sum(dim=1)
    assert 0.999 < cosine_B.min() < 0.999999
