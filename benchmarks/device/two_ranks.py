"""Run a command of and-dist on two ranks that share one GPU.

    torchrun --nproc-per-node=2 -m benchmarks.device.two_ranks gloo train --config FILE ...

The ranks communicate by `gloo`, which takes CUDA tensors, or by `nccl`. NCCL refuses two ranks on
one GPU, unless it is new enough and NCCL_MULTI_RANK_GPU_ENABLE=1 allows it. Nothing else of
and-dist is changed; with run.device=cpu only the backend is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from unittest.mock import patch

import torch
import torch.distributed as dist

from and_dist import cli
from and_dist.distributed import world
from and_dist.distributed.launch_env import LaunchEnv

choose_device = world.choose_device
init_process_group = dist.init_process_group


def choose_the_one_gpu(wanted: Literal["auto", "cpu", "cuda"], layout: LaunchEnv) -> torch.device:
    """Return the GPU that all ranks share, where and-dist requires one for each."""
    if wanted == "cpu":
        return choose_device(wanted, layout)
    return torch.device("cuda", 0)


def init_by_gloo(_backend: str, **options: Any) -> None:
    """Start the process group by gloo alone, whichever backend is asked for."""
    init_process_group("gloo", **options)


@contextmanager
def sharing_one_gpu(backend: str) -> Iterator[None]:
    """Let all ranks of this machine take its one GPU, and communicate by a backend."""
    start = init_by_gloo if backend == "gloo" else init_process_group
    with (
        patch.object(world, "choose_device", choose_the_one_gpu),
        patch.object(dist, "init_process_group", start),
    ):
        yield


def main() -> None:
    """Run the rest of the command line as and-dist does, on the one GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=("gloo", "nccl"))
    parser.add_argument("command", nargs=argparse.REMAINDER, help="command of and-dist")
    given = parser.parse_args()
    with (
        sharing_one_gpu(given.backend),
        patch.object(sys, "argv", ["and-dist", *given.command]),
    ):
        cli.main()


if __name__ == "__main__":
    main()
