"""Join the other ranks: which rank this process is, and what it shares with the others."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

from and_dist.distributed.flight_recorder import switch_on as switch_on_flight_recorder
from and_dist.distributed.launch_env import LaunchEnv, read_launch_env
from and_dist.models.arithmetic import exact_products
from and_dist.utils.host_memory import keep_freed_blocks

log = logging.getLogger(__name__)

ALLOCATOR_VARIABLES = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}
"""Variables, the second of older releases, that tell torch how to hold a GPU's memory."""


@dataclass(frozen=True)
class World:
    """Hold this process's rank, the size of the world, its device and its process groups."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    group: dist.ProcessGroup
    side_group: dist.ProcessGroup
    """The same ranks by gloo, for a thread beside training, so that collectives never mix."""

    @property
    def is_coordinator(self) -> bool:
        """Return whether this rank decides for all: rank 0."""
        return self.rank == 0


def lone_world(device: torch.device) -> World:
    """Return a world of this process alone, which communicates with nobody and needs no start."""
    group = dist.ProcessGroup(0, 1)
    return World(0, 1, 0, 1, device, group, group)


def choose_device(wanted: Literal["auto", "cpu", "cuda"], launch_env: LaunchEnv) -> torch.device:
    """Return the device of this rank; raise ValueError if there is no GPU left for it."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    available, local_rank = torch.cuda.device_count(), launch_env.local_rank
    if available == 1 and launch_env.is_of_srun:
        local_rank = 0  # srun --gpus-per-task=1 shows each task its own alone
    if local_rank >= available:
        raise ValueError(
            f"run.device={wanted}: local rank {local_rank} has no GPU, this machine shows "
            f"{available}; start fewer workers or set run.device=cpu"
        )
    return torch.device("cuda", local_rank)


def share_of_cores(launch_env: LaunchEnv) -> int:
    """Return this rank's share of the cores that the process may run on.

    These are the cores that the job was given, which may be fewer than the machine has.
    """
    return max(1, len(os.sched_getaffinity(0)) // launch_env.local_size)


def _settle_vector_math() -> None:
    """Let one thread be the first to call the vector math of torch's CPU library.

    Twice in some hundred starts on a busy machine the first parallel exp of a process gave one
    thread's half with a relative error of 4e-5, in that call alone, and a run was not what it had
    been to the bit. A race between threads in the library's set-up would do that.
    """
    few = torch.linspace(0.1, 0.9, 64)
    for function in (torch.exp, torch.log, torch.sqrt, torch.tanh, torch.erf):
        function(few)


def _let_memory_grow() -> None:
    """Let torch extend the pieces of a GPU's memory that it holds, if nobody has told it otherwise.

    Steps and discoveries take tensors of other sizes by turns. Pieces of fixed sizes that one
    leaves behind are too small for the other, and memory that is free cannot be had. torch reads
    the variable when it first takes memory of a GPU.
    """
    if not ALLOCATOR_VARIABLES & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


@contextmanager
def open_world(
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
    timeout: timedelta = timedelta(minutes=10),
) -> Iterator[World]:
    """Join the other ranks; threads are set once, here, for everything in this process.

    Ranks are found as torchrun, srun or and-launch name them; without any there is one. On a GPU,
    products of float32 are float32 while the world is open.

    Args:
        device: `cpu`, `cuda`, or `auto`, which takes the GPU if there is one.
        threads: CPU threads of this rank; None shares the cores among the ranks of a machine.
        timeout: Time after which a collective that a rank does not enter fails.

    Example:
        >>> with and_dist.open_world("cpu") as world:
        ...     world.rank, world.size
        (0, 1)
    """
    launch_env = read_launch_env()
    chosen = choose_device(device, launch_env)
    torch.set_num_threads(threads or launch_env.cores or share_of_cores(launch_env))
    _settle_vector_math()
    backend, on_gpu = "gloo", chosen.type == "cuda"
    if on_gpu:
        _let_memory_grow()
        torch.cuda.set_device(chosen)
        backend = "cpu:gloo,cuda:nccl"
    else:
        keep_freed_blocks()
    switch_on_flight_recorder()
    if launch_env.is_alone:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    else:
        place = f"tcp://{launch_env.meeting}?rank={launch_env.rank}&world_size={launch_env.size}"
        where = place if launch_env.meeting else "env://"
        store, rank, size = next(dist.rendezvous(where, timeout=timeout))
        if launch_env.local_size == launch_env.size:
            # torch 2.15's agent keeps one store over restarts; what the last start left in it
            # would be taken for this one's addresses. Agents of many nodes count apart, and have
            # to be told to keep none (docs/interruptions.md).
            store = dist.PrefixStore(f"start {launch_env.restarts}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    group, side_group = dist.group.WORLD, dist.new_group(backend="gloo")
    assert group is not None
    assert isinstance(side_group, dist.ProcessGroup)
    log.info(
        "rank %d of %d on %s by %s, %d threads",
        launch_env.rank,
        launch_env.size,
        chosen,
        backend,
        torch.get_num_threads(),
    )
    world = World(
        launch_env.rank,
        launch_env.size,
        launch_env.local_rank,
        launch_env.local_size,
        chosen,
        group,
        side_group,
    )
    with _leaving_at_once_on_failure(), exact_products() if on_gpu else nullcontext():
        yield world


@contextmanager
def _leaving_at_once_on_failure() -> Iterator[None]:
    """Leave the process groups at the end; abort their collectives if this rank raises.

    To leave in good order is to wait for what is under way, and a collective of NCCL that another
    rank has not entered would keep this rank's error from being seen until a time limit.
    """
    try:
        yield
    except BaseException:
        with suppress(Exception):  # the error that is on its way says what went wrong
            dist.distributed_c10d._abort_process_group()
        raise
    else:
        dist.destroy_process_group()
