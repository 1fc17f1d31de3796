"""The table of costs, counted anew in the networks: on tensors without content, in a moment."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from and_dist.config.schema import EncoderConfig
from and_dist.models.encoders import ENCODERS, Encoder, build_encoder
from and_dist.planning.costs import COSTS, cost_of

IMAGES = (2, 5)


def kept_bytes(encoder: Encoder, side: int, count: int) -> int:
    """What the forward pass leaves for the backward pass, weights left out, each memory once."""
    own = {p.untyped_storage()._cdata for p in encoder.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features_BD = encoder(torch.empty(count, 3, side, side))
    assert features_BD.requires_grad
    return sum(s.nbytes() for address, s in storages.items() if address not in own)


def largest_numbers(encoder: Encoder, side: int) -> int:
    """Of an image's activations."""
    sizes: list[int] = []
    for module in encoder.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, __, output: sizes.append(output[0].numel()))
    encoder(torch.empty(2, 3, side, side))
    return max(sizes)


def test_every_encoder_has_a_cost() -> None:
    assert COSTS.keys() == ENCODERS.keys()


@pytest.mark.parametrize("name", sorted(COSTS))
def test_costs_are_those_of_the_network(name: str) -> None:
    cost = COSTS[name]
    with FakeTensorMode():
        encoder = build_encoder(EncoderConfig(name=name), seed=0)
        sizes = [p.numel() for p in encoder.parameters()]
        assert (sum(sizes), len(sizes), max(sizes)) == (
            cost.parameters,
            cost.tensors,
            cost.largest_parameter,
        )
        assert encoder.head.in_features == cost.width
        assert sum(b.nbytes for b in encoder.buffers()) == cost.buffer_bytes
        with FlopCounterMode(display=False) as counter:
            encoder(torch.empty(2, 3, cost.side, cost.side))
        assert counter.get_total_flops() / 4 == pytest.approx(cost.multiplications, rel=0.001)
        assert largest_numbers(encoder, cost.side) == cost.largest


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(COSTS))
def test_an_image_leaves_as_much_for_the_backward_pass(name: str, precision: str) -> None:
    cost = COSTS[name]
    with FakeTensorMode():
        encoder = build_encoder(EncoderConfig(name=name), seed=0)
        encoder.precision = getattr(torch, precision)
        few, more = (kept_bytes(encoder, cost.side, count) for count in IMAGES)
    kept = (more - few) / (IMAGES[1] - IMAGES[0])
    assert kept == pytest.approx(cost.kept_bytes(precision, cost.side), rel=0.01)


def test_another_feature_dim_has_another_head() -> None:
    for name in ("tiny", "alexnet"):
        with FakeTensorMode():
            encoder = build_encoder(EncoderConfig(name=name, feature_dim=64), seed=0)
        parameters = sum(p.numel() for p in encoder.parameters())
        assert cost_of(name).parameters_at(64) == parameters


def test_an_unknown_encoder_is_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"encoder.name='vgg' is not one of: tiny, small"):
        cost_of("vgg")
