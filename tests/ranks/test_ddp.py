"""What gradients travel as between ranks, and what is left of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from and_dist.distributed.ddp import (
    POWER_SGD_WHOLE_STEPS,
    Compression,
    replicate,
    reset_powersgd_state,
)
from and_dist.distributed.world import World
from benchmarks.common.rank_pool import RankPool

WIDTH = 64


def gradient(world: World, compression: Compression, steps: int, thin: bool) -> Tensor:
    """Of a layer after some steps alike, summed by DDP: d/dW of W x . y is y x^T, of rank 1 for one
    pair, of full rank for many."""
    random = torch.Generator().manual_seed(world.rank)
    pairs = 1 if thin else WIDTH
    x_PI, y_PO = torch.randn(2, pairs, WIDTH, generator=random)
    layer = nn.Linear(WIDTH, WIDTH, bias=False)
    nn.init.zeros_(layer.weight)
    network = replicate(layer, world, x_PI, compression)
    for _ in range(steps):
        layer.zero_grad()
        (network(x_PI) * y_PO).sum().backward()
    assert layer.weight.grad is not None
    return layer.weight.grad.clone()


def error_of(
    ranks: RankPool, compression: Compression, steps: int = 1, thin: bool = False
) -> float:
    exact, *_ = ranks.run(2, gradient, "none", steps, thin)
    found, other = ranks.run(2, gradient, compression, steps, thin)
    assert torch.equal(found, other)
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(("compression", "bound"), [("float16", 2**-10), ("bfloat16", 2**-7)])
def test_16_bits_lose_no_more_than_their_rounding(
    ranks: RankPool, compression: Compression, bound: float
) -> None:
    assert 0 < error_of(ranks, compression) < bound


def test_powersgd_sends_everything_at_first_and_thin_matrices_later(ranks: RankPool) -> None:
    """Two ranks' gradients of rank 1 are of rank 2, and lose nothing; those of full rank do."""
    later = POWER_SGD_WHOLE_STEPS + 3
    assert error_of(ranks, "powersgd") == 0
    assert error_of(ranks, "powersgd", later, thin=True) < 1e-4
    assert error_of(ranks, "powersgd", later) > 0.1


def gradients_after_none(world: World, forgets: bool) -> list[bool]:
    """Whether gradients are numbers: of a step after many, of one that is poisoned, of the next."""
    random = torch.Generator().manual_seed(world.rank)
    x_PI, y_PO = torch.randn(2, WIDTH, WIDTH, generator=random)
    layer = nn.Linear(WIDTH, WIDTH, bias=False)
    network = replicate(layer, world, x_PI, "powersgd")
    found = []
    for step in range(POWER_SGD_WHOLE_STEPS + 5):
        layer.zero_grad()
        is_poisoned = step == POWER_SGD_WHOLE_STEPS + 3
        (network(x_PI) * (torch.inf * y_PO if is_poisoned else y_PO)).sum().backward()
        assert layer.weight.grad is not None
        found.append(bool(layer.weight.grad.isfinite().all()))
        if is_poisoned and forgets:
            reset_powersgd_state(network)
    return found[-3:]


def test_powersgd_forgets_a_gradient_that_was_no_number(ranks: RankPool) -> None:
    """As roll_back has it; else every later one would be none."""
    assert ranks.run(2, gradients_after_none, True) == [[True, False, True]] * 2
    assert ranks.run(2, gradients_after_none, False) == [[True, False, False]] * 2
