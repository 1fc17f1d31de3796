"""Run every collective, and whole runs, in a world of one rank that communicates all the same.

    python -m benchmarks.device.world_of_one [cuda|cpu]

A world of one takes a short cut past its process groups wherever it asks `world.size == 1`. Here
the size denies that, and is 1 in every sum. So all collectives, DDP with its hooks and the
checkpoints go through the process groups, which on a GPU are NCCL's and gloo's. Each collective
runs by itself on all types; then runs of configs/debug.yaml have to have the losses of a world with
the short cut, or the command ends with exit code 1. X any number of elements.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from and_dist.distributed import collectives
from and_dist.distributed import world as worlds
from and_dist.distributed.watchdog import Watchdog
from and_dist.distributed.world import World, open_world
from and_dist.training.session import run_training
from benchmarks.device.requirements import require_gpu
from tests.ranks.runs import debug_config, losses_of

RUNS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "small": ("encoder.name=small", "encoder.precision=bfloat16", "bank.dtype=bfloat16"),
    "float16-sent": ("optim.compression=float16",),
    "powersgd": ("optim.compression=powersgd",),
    "fused": ("discovery.search=fused",),
}


MOST_APART = 0.02
"""The largest difference of a loss. On CPUs losses are equal, except with gradients in float16,
which differ by 2e-4; a GPU's kernels sum in an order of their own."""


class CommunicatingSize(int):
    """Count as 1, but differ from 1 and exceed it whenever the two are compared."""

    def __eq__(self, other: object) -> bool:
        """Deny being 1."""
        return other != 1 and int(self) == other

    def __ne__(self, other: object) -> bool:
        """Agree with __eq__."""
        return not self == other

    def __gt__(self, other: int) -> bool:
        """Claim to be more than 1."""
        return other == 1 or int(self) > other

    __hash__ = int.__hash__


@contextmanager
def without_short_cuts() -> Iterator[None]:
    """Let every world that is opened here communicate, though it has one rank."""

    def make_world(rank: int, size: int, *rest: Any) -> World:
        """Make a world whose size denies being 1."""
        return World(rank, CommunicatingSize(size), *rest)

    with patch.object(worlds, "World", make_world):
        yield


def sample_tensors(device: torch.device) -> list[Tensor]:
    """Return [4, ...] tensors of many types and layouts, an empty one among them."""
    numbers_X = torch.arange(12, device=device)
    return [
        numbers_X.view(4, 3),
        numbers_X[:4].bool(),
        numbers_X[:4, None].double() / 3,
        numbers_X[:4, None].expand(4, 2),
        numbers_X[:8].view(2, 4).t().half(),
        torch.empty(4, 0, device=device),
        numbers_X[:4].to(torch.uint8),
    ]


def check_collectives(world: World) -> None:
    """Assert that every collective returns to a lone rank the tensors that it sent."""
    tensors, numbers_X = sample_tensors(world.device), torch.arange(12, device=world.device)
    for found, sent in zip(collectives.gather_batch(world, tensors), tensors, strict=True):
        assert torch.equal(found, sent), (found, sent)
    for found, sent in zip(collectives.exchange_parts(world, tensors), tensors, strict=True):
        assert torch.equal(found, sent[None]), (found, sent)
    for dtype in (torch.int64, torch.float64, torch.float32):
        summed_X = collectives.reduce_sum(world, numbers_X.to(dtype).clone())
        assert torch.equal(summed_X, numbers_X.to(dtype))
    transposed = numbers_X.double().view(3, 4).t()
    gathered = collectives.gather_to_coordinator(world, transposed)
    assert gathered is not None
    assert torch.equal(gathered, transposed[None])
    sent_X = collectives.broadcast_from_coordinator(world, numbers_X.clone())
    assert torch.equal(sent_X, numbers_X)
    (empty,) = collectives.gather_batch(world, [numbers_X[:0].view(0, 3)])
    assert empty.shape == (0, 3)
    assert collectives.gather_objects(world, {"a": 1}) == [{"a": 1}]
    print("collectives: as sent, on", world.device, "by", dist.get_backend_config(), flush=True)


def compare_run(name: str, device: str, folder: Path) -> float:
    """Run the debug config with the short cut and without; return how far losses are apart."""
    losses = []
    for way, world_kind in (("short-cut", nullcontext()), ("communicating", without_short_cuts())):
        settings = (f"name={name}-{way}", f"run.device={device}", "curriculum.rounds=1")
        config = debug_config(folder, *settings, *RUNS[name])
        with world_kind, Watchdog() as watchdog:
            run_training(config, watchdog)
        losses.append(losses_of(config.folder))
    apart = (losses[0] - losses[1]).abs().max().item()
    print(f"RUN {name}: losses of {len(losses[0])} steps, at most {apart:.2e} apart", flush=True)
    return apart


def main() -> int:
    """Check the collectives, then compare the runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("device", nargs="?", choices=("cuda", "cpu"), default="cuda")
    device = parser.parse_args().device
    if device == "cuda":
        require_gpu()
    with without_short_cuts(), open_world(device) as world:
        check_collectives(world)
    with tempfile.TemporaryDirectory() as folder:
        apart = [compare_run(name, device, Path(folder)) for name in RUNS]
    return int(max(apart) > MOST_APART)


if __name__ == "__main__":
    sys.exit(main())
