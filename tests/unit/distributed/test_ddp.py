"""Seeds of steps; what DDP sums is proven on ranks."""

from __future__ import annotations

import torch

from and_dist.distributed.ddp import seed_step
from tests.loading import world_of


def test_a_step_draws_by_its_seed_and_leaves_nothing_behind() -> None:
    """torch keeps seeds for devices that it has not initialised, all of them until it does."""
    waiting = len(torch.cuda._queued_calls)
    drawn = []
    for seed, step in [(0, 3), (0, 4), (1, 3), (0, 3)]:
        seed_step(world_of(), seed, 2, step)
        drawn.append(torch.rand(1).item())
    assert len(torch.cuda._queued_calls) == waiting
    assert drawn[0] == drawn[3]
    assert len(set(drawn)) == 3
