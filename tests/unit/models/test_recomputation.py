"""Blocks that are computed again give what they gave, for less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from and_dist.config.schema import EncoderConfig
from and_dist.models.encoders import Encoder, build_encoder
from and_dist.models.stages import blocks_of

VIT = {"patch_size": 4, "num_layers": 3, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}


def build(name: str, is_recomputed: bool, options: dict[str, Any], side: int = 32) -> Encoder:
    config = EncoderConfig(name=name, feature_dim=8, checkpointing=is_recomputed, options=options)
    return build_encoder(config, 3, side).train()


def learn(encoder: Encoder, side: int = 32) -> tuple[Tensor, int]:
    """The features of some images, and the bytes kept until the backward pass, weights left out."""
    images_BCHW = torch.rand(6, 3, side, side, generator=torch.Generator().manual_seed(0))
    own = {p.untyped_storage()._cdata for p in encoder.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    torch.manual_seed(1)  # of dropout
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features_BD = encoder(images_BCHW)
    size = sum(count for at, count in kept.items() if at not in own)
    features_BD[:, :3].square().sum().backward()
    return features_BD.detach(), size


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        ("cifar_resnet18", {}, 32),
        ("torchvision/vit_b_16", VIT | {"dropout": 0.3}, 32),
        ("timm/convnext_atto", {"drop_path_rate": 0.5}, 32),
        pytest.param("torchvision/efficientnet_b0", {}, 32, marks=pytest.mark.thorough),
        pytest.param("torchvision/densenet121", {}, 64, marks=pytest.mark.thorough),
        pytest.param("torchvision/swin_t", {}, 32, marks=pytest.mark.thorough),
    ],
)
def test_gradients_and_statistics_are_the_same_for_less_memory(
    name: str, options: dict[str, Any], side: int
) -> None:
    plain, recomputed = (
        build(name, is_recomputed, options, side) for is_recomputed in (False, True)
    )
    expected, held = learn(plain, side)
    found, held_less = learn(recomputed, side)
    assert torch.equal(found, expected)
    for (at, ours), theirs in zip(recomputed.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert torch.equal(ours.grad, theirs.grad), at
    for (at, ours), theirs in zip(recomputed.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs), at
    assert held_less < 0.7 * held
    assert recomputed.state_dict().keys() == plain.state_dict().keys()


def test_a_checkpoint_of_one_is_loaded_by_the_other() -> None:
    plain, recomputed = (build("cifar_resnet18", it, {}) for it in (False, True))
    learn(recomputed)
    plain.load_state_dict(recomputed.state_dict())
    images_BCHW = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain.eval()(images_BCHW), recomputed.eval()(images_BCHW))


@pytest.mark.parametrize(
    "name", ["small", pytest.param("torchvision/vgg11", marks=pytest.mark.thorough)]
)
def test_a_network_without_blocks_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"checkpointing: encoder.name={name} has no repeated"):
        build(name, True, {})


def test_blocks_are_the_outermost_parts_of_lists() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())

    network = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.Sequential(Inner(), Inner()), nn.ModuleList([Inner()])
    )
    expected = [network[1][0], network[1][1], network[2][0]]
    assert all(a is b for a, b in zip(blocks_of(network), expected, strict=True))
