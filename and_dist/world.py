"""World: which rank this process is, and what it shares with the others."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    group: dist.ProcessGroup

    @property
    def is_coordinator(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class Layout:
    """What torchrun says in the environment; a lone process is a world of one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def read_layout(environ: Mapping[str, str] | None = None) -> Layout:
    environ = os.environ if environ is None else environ

    def number(name: str, default: int) -> int:
        text = environ.get(name, str(default))
        if not text.isdecimal():
            raise ValueError(f"{name}={text!r} in the environment is not a whole number")
        return int(text)

    size = number("WORLD_SIZE", 1)
    if size < 1:
        raise ValueError("WORLD_SIZE=0 in the environment: a world needs at least one rank")
    layout = Layout(number("RANK", 0), size, number("LOCAL_RANK", 0), number("LOCAL_WORLD_SIZE", 1))
    if layout.rank >= size:
        raise ValueError(f"RANK={layout.rank} in the environment is not below WORLD_SIZE={size}")
    return layout


def choose_device(wanted: Literal["auto", "cpu", "cuda"], local_rank: int) -> torch.device:
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    available = torch.cuda.device_count()
    if local_rank >= available:
        raise ValueError(
            f"run.device={wanted}: local rank {local_rank} has no GPU, this machine shows "
            f"{available}; start fewer workers or set run.device=cpu"
        )
    return torch.device("cuda", local_rank)


@contextmanager
def open_world(
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
    timeout: timedelta = timedelta(minutes=10),
) -> Iterator[World]:
    """Join the other ranks; threads are set once here for everything in this process."""
    layout = read_layout()
    chosen = choose_device(device, layout.local_rank)
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // layout.local_size))
    backend = "gloo"
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        backend = "cpu:gloo,cuda:nccl"
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    group = dist.group.WORLD
    assert group is not None
    try:
        yield World(layout.rank, layout.size, layout.local_rank, layout.local_size, chosen, group)
    finally:
        dist.destroy_process_group()
