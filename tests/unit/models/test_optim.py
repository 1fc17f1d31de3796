from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from and_dist.config.optim_schema import OptimConfig, TrainingOptimConfig
from and_dist.config.schema import EncoderConfig
from and_dist.models.encoders import ENCODERS, Encoder, build_encoder, stage_of_parameters
from and_dist.models.optim import (
    FACTOR,
    build_optimiser,
    build_training_optimiser,
    clip_gradients,
    forget,
    parameters_of,
    set_learning_rate,
)

ALL_OPTIMISERS = """
import sys, torch
from and_dist.config.optim_schema import TrainingOptimConfig
from and_dist.config.schema import EncoderConfig
from and_dist.models.encoders import build_encoder
from and_dist.models.optim import build_training_optimiser

encoder = build_encoder(EncoderConfig(name="tiny"), 0)
for name in ("sgd", "adamw", "lars"):
    config = TrainingOptimConfig(name=name)
    optimiser = build_training_optimiser(encoder, torch.nn.Identity(), config)
    encoder(torch.rand(2, 3, 32, 32)).sum().backward()
    optimiser.step()
    optimiser.zero_grad()
assert "torch._dynamo" not in sys.modules
print("torch.compile is not loaded")
"""
"""A program that takes a step with each optimiser."""


def encoder_of(name: str = "tiny", seed: int = 0) -> Encoder:
    return build_encoder(EncoderConfig(name=name, feature_dim=8), seed)


def take_steps(encoder: Encoder, optimiser: torch.optim.Optimizer, count: int = 4) -> None:
    images = torch.Generator().manual_seed(5)
    for _ in range(count):
        optimiser.zero_grad()
        images_BCHW = torch.randn(6, 3, 32, 32, generator=images)
        features_BD = encoder(images_BCHW.to(encoder.head.weight.dtype))
        (features_BD[:, :3].sum() + features_BD.square()[:, 4:].sum()).backward()
        optimiser.step()


def largest_difference(first: Encoder, second: Encoder) -> float:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return max((a - b).detach().abs().max().item() for a, b in pairs)


def test_ready_made_momentum_is_what_sgd_would_make() -> None:
    models = [nn.Linear(3, 2), nn.Linear(3, 2)]
    models[1].load_state_dict(models[0].state_dict())
    plain = torch.optim.SGD(
        models[0].parameters(), lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    ours = build_optimiser([models[1]], OptimConfig(fused=False))
    for step in range(3):
        for model, optimiser in zip(models, (plain, ours), strict=True):
            optimiser.zero_grad()
            model(torch.full((4, 3), 1.0 + step)).square().sum().backward()
            optimiser.step()
    assert torch.equal(models[0].weight, models[1].weight)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_pass_over_everything_steps_as_many_passes_do(momentum: float) -> None:
    weights = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(30, 20)
        optimiser = build_optimiser([model], OptimConfig(fused=fused, momentum=momentum))
        for step in range(5):
            optimiser.zero_grad()
            model(torch.full((4, 30), 1.0 + step)).square().mean().backward()
            optimiser.step()
        weights.append(model.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-7)


def test_without_other_keys_all_parameters_are_one_group_in_their_order() -> None:
    encoder, head = encoder_of(), nn.Linear(8, 3)
    optimiser = build_training_optimiser(encoder, head, TrainingOptimConfig())
    assert len(optimiser.param_groups) == 1
    expected = [*encoder.parameters(), *head.parameters()]
    assert all(a is b for a, b in zip(parameters_of(optimiser), expected, strict=True))


@pytest.mark.parametrize("fused", [True, False])
def test_adamw_is_that_of_torch(fused: bool) -> None:
    ours, theirs = encoder_of(), encoder_of()
    config = TrainingOptimConfig(
        name="adamw", lr=0.01, weight_decay=0.1, betas=(0.8, 0.99), fused=fused
    )
    plain = torch.optim.AdamW(theirs.parameters(), 0.01, (0.8, 0.99), weight_decay=0.1)
    take_steps(ours, build_training_optimiser(ours, nn.Identity(), config))
    take_steps(theirs, plain)
    assert largest_difference(ours, theirs) < 1e-6


def test_lars_is_what_its_authors_wrote() -> None:
    """v <- m v + trust |w| / (|g| + d |w|) (g + d w); w <- w - lr v; norms and biases as in SGD."""
    ours, theirs = encoder_of().double(), encoder_of().double()
    config = TrainingOptimConfig(
        name="lars", lr=0.5, momentum=0.9, nesterov=False, weight_decay=0.01, trust=0.02
    )
    optimiser = build_training_optimiser(ours, nn.Identity(), config)
    velocity: dict[Tensor, Tensor] = {}

    class ByHand(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # noqa: ARG002 # as torch calls it
            for parameter in theirs.parameters():
                assert parameter.grad is not None
                change = parameter.grad + 0.01 * parameter
                if parameter.ndim > 1:
                    length, slope = parameter.norm(), parameter.grad.norm()
                    change = change * 0.02 * length / (slope + 0.01 * length)
                velocity[parameter] = 0.9 * velocity.get(parameter, 0) + change
                parameter -= 0.5 * velocity[parameter]

    take_steps(ours, optimiser)
    take_steps(theirs, ByHand(theirs.parameters(), lr=1.0))
    assert largest_difference(ours, theirs) < 1e-12
    assert largest_difference(ours, encoder_of().double()) > 0.01


@pytest.mark.parametrize("zeros", ["weight", "gradient", "both"])
def test_lars_takes_weights_and_gradients_of_zeros(zeros: str) -> None:
    encoder = encoder_of()
    config = TrainingOptimConfig(name="lars", weight_decay=0.0)
    optimiser = build_training_optimiser(encoder, nn.Identity(), config)
    for parameter in encoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    weight = encoder.head.weight
    assert weight.grad is not None
    for tensor in {"weight": [weight.data], "gradient": [weight.grad]}.get(
        zeros, [weight.data, weight.grad]
    ):
        tensor.zero_()
    optimiser.step()
    assert all(parameter.isfinite().all() for parameter in encoder.parameters())


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_only_matrices_decay_if_asked(name: str) -> None:
    """Without gradients of any size, what decays shrinks and the rest stays."""
    encoder = encoder_of()
    before = [parameter.detach().clone() for parameter in encoder.parameters()]
    config = TrainingOptimConfig(
        name=name, lr=0.1, weight_decay=0.1, weight_decay_of="matrices", trust=1.0
    )
    optimiser = build_training_optimiser(encoder, nn.Identity(), config)
    for parameter in encoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for old, new in zip(before, encoder.parameters(), strict=True):
        assert torch.equal(old, new) == (new.ndim <= 1)


@pytest.mark.whole_run
def test_no_optimiser_waits_for_torch_compile() -> None:
    done = subprocess.run([sys.executable, "-c", ALL_OPTIMISERS], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "torch.compile is not loaded\n", "")


def test_each_stage_has_its_share_of_the_learning_rate() -> None:
    encoder, head = encoder_of("cifar_resnet18"), nn.Linear(8, 3)
    config = TrainingOptimConfig(layer_decay=0.5, weight_decay_of="matrices")
    optimiser = build_training_optimiser(encoder, head, config)
    set_learning_rate(optimiser, 0.8)
    rate = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    rates = {name: rate[id(parameter)] for name, parameter in encoder.named_parameters()}
    assert rates["head.weight"] == rates["head.bias"] == 0.8
    assert rates["trunk.layer4.1.bn2.weight"] == rates["trunk.layer4.0.conv1.weight"] == 0.4
    assert [rates[f"trunk.layer{at}.0.conv1.weight"] for at in (3, 2, 1)] == [0.2, 0.1, 0.05]
    assert rates["trunk.conv1.weight"] == rates["trunk.bn1.bias"] == 0.025
    assert {rate[id(parameter)] for parameter in head.parameters()} == {0.8}
    assert {group[FACTOR] for group in optimiser.param_groups} == {0.5**at for at in range(6)}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_parameter_has_a_stage_and_the_head_has_the_last(name: str) -> None:
    encoder = encoder_of(name)
    found = stage_of_parameters(encoder)
    assert [*found] == [name for name, _ in encoder.named_parameters()]
    assert list(found.values()) == sorted(found.values())
    assert set(found.values()) == set(range(found["head.bias"] + 1))
    assert found["head.weight"] > found[[*found][-3]]


@pytest.mark.parametrize(("largest", "is_clipped"), [(0.5, True), (1e9, False)])
def test_gradients_are_clipped_as_torch_does(largest: float, is_clipped: bool) -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(3, 4), torch.randn(5)]
    before = [gradient.clone() for gradient in gradients]
    parameters = [torch.zeros_like(gradient, requires_grad=True) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(parameters, largest)
    clip_gradients(gradients, torch._foreach_norm(gradients), largest)
    for ours, parameter, old in zip(gradients, parameters, before, strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-5, atol=1e-7)
        assert torch.equal(ours, old) != is_clipped


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_what_is_forgotten_is_as_before_the_first_step(name: str) -> None:
    first, second = encoder_of(), encoder_of()
    config = TrainingOptimConfig(name=name, lr=0.01)
    optimiser = build_training_optimiser(first, nn.Identity(), config)
    take_steps(first, optimiser)
    forget(optimiser, first.parameters())
    first.load_state_dict(encoder_of(seed=3).state_dict())
    second.load_state_dict(first.state_dict())
    take_steps(first, optimiser, 2)
    take_steps(second, build_training_optimiser(second, nn.Identity(), config), 2)
    assert largest_difference(first, second) == 0
