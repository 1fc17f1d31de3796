"""The table of costs, counted anew in the networks: on tensors without content, in a moment."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from and_dist.config.schema import EncoderConfig
from and_dist.models.counting import count_encoder
from and_dist.models.encoders import ENCODERS, Encoder, build_encoder
from and_dist.planning.costs import COSTS, HELD_ON_GPU, Cost, Held, cost_of

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
        assert COSTS[name].parameters_at(64) == parameters


def test_an_unknown_encoder_is_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"encoder.name='smal' is not one of: .* mean small\?"):
        cost_of(EncoderConfig(name="smal"), 32)


@pytest.mark.parametrize("name", ["small", "cifar_resnet18", "alexnet"])
def test_what_is_counted_is_what_the_table_says(name: str) -> None:
    """So that other networks can be counted alike; on a GPU to within what was measured."""
    cost = COSTS[name]
    found = count_encoder(EncoderConfig(name=name), cost.side)
    held = Held(found.pop("held_float32"), found.pop("held_bfloat16"))
    assert found.pop("multiplications") == pytest.approx(cost.multiplications, rel=0.001)
    assert Cost(multiplications=cost.multiplications, **found) == cost
    assert held == pytest.approx(HELD_ON_GPU[name], rel=0.06)


def test_a_network_that_is_computed_again_keeps_less_and_computes_as_much() -> None:
    plain, again = (
        count_encoder(EncoderConfig(name="cifar_resnet18", checkpointing=it), 32)
        for it in (False, True)
    )
    for precision in ("float32", "bfloat16"):
        assert again[f"kept_{precision}"] < 0.7 * plain[f"kept_{precision}"]
    assert again["multiplications"] == plain["multiplications"]
    assert again["parameters"] == plain["parameters"]


def test_a_head_of_two_layers_has_its_parameters() -> None:
    config = EncoderConfig(name="tiny", head="mlp", hidden_dim=32, hidden_norm=True)
    found = count_encoder(config, 32)
    encoder = build_encoder(config, 0)
    assert found["parameters"] == sum(p.numel() for p in encoder.parameters())
    assert found["width"] == 32


@pytest.mark.whole_run
@pytest.mark.parametrize(
    ("given", "parameters"),
    [
        ({"name": "torchvision/shufflenet_v2_x0_5"}, 473_000),
        ({"name": "small", "head": "mlp", "hidden_dim": 64}, 413_000),
    ],
)
def test_other_networks_are_counted_in_a_program_of_their_own(
    given: dict[str, Any], parameters: int
) -> None:
    found, held = cost_of(EncoderConfig(**given), 32)
    assert found.parameters == pytest.approx(parameters, rel=0.01)
    assert 0 < held.bfloat16 < held.float32


@pytest.mark.whole_run
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvision/resnet19", "torchvision has no such model; did you mean resnet1"),
        ("torchvision/vit_b_16", "multiples of them, such as 32 or 48"),
        ("nowhere:network", "No module named 'nowhere'"),
        ("os:abort", r"encoder\.name=os:abort ended the program that counts its costs"),
        ("os:wait", r"encoder\.name=os:wait ended .* \(status 1\): ChildProcessError"),
    ],
)
def test_what_cannot_be_counted_is_a_sentence(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        cost_of(EncoderConfig(name=name), 40)


def test_without_torch_it_is_said_where_to_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("and_dist.planning.costs.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="takes torch, which is not installed here; make the plan"):
        cost_of(EncoderConfig(name="torchvision/resnet34"), 33)
    assert cost_of(EncoderConfig(name="resnet18"), 33).cost is COSTS["resnet18"]
