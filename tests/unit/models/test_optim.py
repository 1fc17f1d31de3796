from __future__ import annotations

import pytest
import torch
from torch import nn

from and_dist.config.optim_schema import OptimConfig
from and_dist.models.optim import build_optimiser, learning_rate


@pytest.mark.parametrize(
    ("milestones", "expected"),
    [
        ((120, 160), {0: 0.03, 119: 0.03, 120: 3e-3, 160: 3e-4}),
        ((80, 120, 160), {79: 0.03, 80: 3e-3, 120: 3e-4, 199: 3e-5}),
    ],
)
def test_the_rate_falls_at_the_milestones(
    milestones: tuple[int, ...], expected: dict[int, float]
) -> None:
    config = OptimConfig(milestones=milestones)
    assert {epoch: learning_rate(config, epoch) for epoch in expected} == pytest.approx(expected)


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
