"""Let one of two ranks fail while a collective waits for the other, and time how soon it is gone.

    torchrun --nproc-per-node=2 -m benchmarks.device.failing_rank [gloo|nccl]

Rank 1 enters a sum that rank 0 never enters, and raises. It has to leave its world within a few
seconds, so that its error is seen: NCCL's collective is aborted, where it would be waited for until
rank 0 leaves. Both ranks share one GPU, as in benchmarks.device.two_ranks.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
import torch.distributed as dist

from and_dist.distributed.launch_env import read_launch_env
from and_dist.distributed.world import World, open_world
from benchmarks.device.two_ranks import sharing_one_gpu

PATIENCE, SOON = 20.0, 5.0
"""Seconds that rank 0 stays, and within which rank 1 has to be gone."""


class PlannedError(RuntimeError):
    """Says that a rank fails as it is to fail."""


def fail_beside_a_sum(world: World) -> None:
    """Enter a sum that no other rank enters, and raise."""
    dist.all_reduce(torch.ones(1, device=world.device), group=world.group, async_op=True)
    raise PlannedError


def main() -> int:
    """Fail or wait, by rank; return 1 if the failing rank was not gone soon."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", nargs="?", choices=("gloo", "nccl"), default="nccl")
    backend = parser.parse_args().backend
    begun = time.monotonic()
    with sharing_one_gpu(backend):
        try:
            with open_world("cuda" if torch.cuda.is_available() else "cpu") as world:
                dist.barrier()
                begun = time.monotonic()
                if world.rank == 0:
                    time.sleep(PATIENCE)
                else:
                    fail_beside_a_sum(world)
        except PlannedError:
            seconds = time.monotonic() - begun
            print(f"rank {read_launch_env().rank} was gone after {seconds:.1f} s", flush=True)
            return int(seconds > SOON)
    return 0


if __name__ == "__main__":
    sys.exit(main())
