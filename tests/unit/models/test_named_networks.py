"""Networks of torchvision and timm, and of users' own functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from and_dist.config.schema import EncoderConfig
from and_dist.config.trust import trusting
from and_dist.models.encoders import Encoder, build_encoder, stage_of_parameters, stages
from and_dist.models.shapes import build_unfilled, check_image_size
from tests.backbones import BACKBONES, Backbone

QUICK = [b for b in BACKBONES if b.name in ("torchvision/vit_b_16", "timm/convnext_atto")]
ALL = [*QUICK, *(pytest.param(b, marks=pytest.mark.thorough) for b in BACKBONES if b not in QUICK)]

OWN = """
import torch
from torch import nn

def vectors(width=6):
    return nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten())

def maps():
    return nn.Conv2d(3, 4, 3)

def pairs():
    class Two(nn.Module):
        def forward(self, images):
            return images, images
    return Two()

def number():
    return 7

constant = 3
"""


def build(name: str, side: int | None = 32, **given: Any) -> Encoder:
    with trusting(given.pop("is_trusted", False)):
        return build_encoder(EncoderConfig(name=name, feature_dim=8, **given), 0, side)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that lies where the user stands."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("backbone", ALL, ids=str)
def test_every_parameter_learns_and_every_stage_is_probed(backbone: Backbone) -> None:
    encoder = build(backbone.name, backbone.side, options=backbone.options)
    images = torch.randn(6, 3, backbone.side, backbone.side, generator=torch.manual_seed(1))
    heard: dict[str, torch.Tensor] = {}
    for name, module in stages(encoder).items():
        module.register_forward_hook(lambda *call, name=name: heard.update({name: call[2]}))
    weights = torch.randn(8, 3, generator=torch.manual_seed(2))
    optimiser = torch.optim.SGD(encoder.parameters(), lr=0.01)
    for _ in range(2):  # some begin with branches that are multiplied by zeros
        optimiser.step()
        optimiser.zero_grad()
        (encoder.train()(images) @ weights).square().sum().backward()
    still = [
        name
        for name, parameter in encoder.named_parameters()
        if parameter.grad is None
        or not parameter.grad.isfinite().all()
        or not parameter.grad.abs().sum() > 0
    ]
    assert still == []
    assert [*heard] == [*(f"stage{at}" for at in range(1, backbone.stages + 1)), "fc"]
    assert heard["fc"].shape == (6, encoder.width)
    found = stage_of_parameters(encoder)
    assert found["head.weight"] == max(found.values())
    assert found.keys() == {name for name, _ in encoder.named_parameters()}


@pytest.mark.parametrize(
    ("name", "attribute"),
    [
        ("mobilenet_v3_small", "classifier.3"),
        pytest.param("resnet34", "fc", marks=pytest.mark.thorough),
        pytest.param("efficientnet_b0", "classifier.1", marks=pytest.mark.thorough),
        pytest.param("convnext_tiny", "classifier.2", marks=pytest.mark.thorough),
    ],
)
def test_a_trunk_is_the_network_of_torchvision_without_its_classifier(
    name: str, attribute: str
) -> None:
    encoder = build(f"torchvision/{name}").eval()
    theirs = torchvision.models.get_model(name).eval()
    assert encoder.classifier == attribute
    weights = {k: v for k, v in theirs.state_dict().items() if not k.startswith(f"{attribute}.")}
    encoder.trunk.load_state_dict(weights)
    linear = theirs.get_submodule(attribute)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(linear(encoder.trunk(images)), theirs(images))


def test_a_resnet_by_either_name_is_the_same() -> None:
    """Its first weights too, since both draw as torchvision does."""
    ours = build("resnet18", init="he_fan_out")
    theirs = build("torchvision/resnet18")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours.eval().trunk(images), theirs.eval().trunk(images))


def test_building_leaves_the_random_state_and_statistics_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    encoder = build("torchvision/shufflenet_v2_x0_5")
    assert torch.equal(torch.rand(1), expected)
    norm = encoder.trunk.conv1[1]
    assert not norm.running_mean.any()
    assert norm.num_batches_tracked == 0


def test_an_option_may_be_a_list() -> None:
    options = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 24)}
    assert build("timm/convnext_atto", options=options).width == 24


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("torchvision/resnet19", {}, "torchvision has no such model; did you mean resnet1"),
        ("torchvision/nothing-like-it", {}, "such as alexnet, "),
        ("torchvision/squeezenet1_0", {}, "has no linear layer at its end"),
        ("torchvision/resnet18", {"options": {"depth": 3}}, "unexpected keyword argument 'depth'"),
        ("torchvision/inception_v3", {"options": {"init_weights": False}}, "does not fit"),
        ("timm/resnet18x", {}, "timm has no such model; did you mean resnet18"),
        ("timm/convnext_atto", {"options": {"depths": "many"}}, "encoder.options"),
        ("timm/convnext_atto", {"options": {"dims": (8, 8)}}, "encoder.options"),
        ("torchvision/resnet18", {"options": {"weights": "DEFAULT"}}, "would load a file"),
        ("timm/resnet18", {"options": {"checkpoint_path": "x.pth"}}, "checkpoint_path would load"),
        ("timm/hf-hub:timm/resnet18", {}, "timm has no such model"),
        ("smal", {}, r"package\.module:function; did you mean small"),
        ("small", {"options": {"depth": 3}}, "encoder.name=small takes none"),
    ],
)
def test_what_cannot_be_built_is_told_in_a_sentence(
    name: str, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        build(name, **given)


@pytest.mark.parametrize(
    ("name", "options", "side", "said"),
    [
        ("torchvision/vit_b_16", {}, 40, "multiples of them, such as 32 or 48"),
        ("torchvision/vit_b_16", {"patch_size": 7, "num_layers": 1}, 30, "28 or 35"),
        ("timm/vit_tiny_patch16_224", {"depth": 1}, 8, "such as 16"),
    ],
)
def test_a_network_of_patches_says_which_images_it_takes(
    name: str, options: dict[str, Any], side: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        check_image_size(EncoderConfig(name=name, options=options), side)


def test_a_function_of_ones_own_is_a_network(own: str) -> None:
    encoder = build(f"{own}:vectors", options={"width": 5}, is_trusted=True)
    assert encoder.width == 5 * 5 * 5
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, 8)
    assert [*stages(encoder)] == ["stage1", "fc"]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("maps", r"returns a Tensor of the shape \[2, 4, 30, 30\] for two images"),
        ("pairs", "returns a tuple for two images"),
        ("number", "returned int, and has to return a torch.nn.Module"),
        ("vector", "has no such function; did you mean vectors"),
        ("constant", "has no such function"),
    ],
)
def test_what_a_function_returns_is_told(own: str, function: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(f"{own}:{function}", is_trusted=True)


def test_a_module_that_is_not_there_is_told(own: str) -> None:
    with pytest.raises(ValueError, match=rf"No module named '{own}_' \(looked in /"):
        build(f"{own}_:vectors", is_trusted=True)


def test_a_function_is_not_called_unless_it_is_trusted(own: str, tmp_path: Path) -> None:
    (tmp_path / f"{own}_bad.py").write_text(f"open('{tmp_path}/called', 'w')")
    config = EncoderConfig(name=f"{own}_bad:vectors")
    with pytest.raises(ValueError, match="add --trust if you trust it"):
        build_encoder(config, 0)
    with pytest.raises(ValueError, match="add --trust if you trust it"):
        build_unfilled(config)
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("has_norm", [False, True])
def test_a_head_of_two_layers(has_norm: bool) -> None:
    encoder = build("tiny", head="mlp", hidden_dim=12, hidden_norm=has_norm)
    kinds = [type(module) for module in encoder.head]
    norm = [nn.BatchNorm1d] if has_norm else []
    assert kinds == [nn.Linear, *norm, nn.ReLU, nn.Linear]
    features_BD = encoder(torch.rand(4, 3, 32, 32))
    torch.testing.assert_close(features_BD.norm(dim=1), torch.ones(4))
    plain = build("tiny")
    for name, tensor in plain.trunk.state_dict().items():
        assert torch.equal(tensor, encoder.trunk.state_dict()[name])
