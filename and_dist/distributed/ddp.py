"""Replicate an encoder on many ranks by DDP, which is made to sum and draw alike in every step."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from and_dist.distributed.collectives import broadcast_from_coordinator
from and_dist.distributed.world import World
from and_dist.models.encoders import Encoder
from and_dist.utils.counter_random import derive_key

Compression = Literal["none", "float16", "bfloat16", "powersgd"]
POWER_SGD_RANK, POWER_SGD_WHOLE_STEPS = 4, 100
POWER_SGD_STATE = "power_sgd_state"
"""The attribute of a network that holds powerSGD's state."""


def replicate(
    module: nn.Module, world: World, example: Any, compression: Compression = "none"
) -> nn.Module:
    """Return DDP around a module that takes such an example; in a world of one, the module."""
    if world.size == 1:
        return module
    # torch 2.15 has a new name for "send no running statistics in the forward pass".
    names = inspect.signature(DistributedDataParallel).parameters
    new, old = "forward_sync_buffers", "broadcast_buffers"
    quiet: dict[str, Any] = {new if new in names else old: False}
    with _without_compiler() as ddp:
        network = ddp(
            module,
            device_ids=[world.device] if world.device.type == "cuda" else None,
            process_group=world.group,
            gradient_as_bucket_view=True,
            **quiet,
        )
    _compress(network, compression, world)
    _settle_buckets(network, module, example)
    return network


def without_reduction(network: nn.Module) -> AbstractContextManager[None]:
    """Keep the gradients of a pass on this rank, to be summed with those of the next pass."""
    if isinstance(network, DistributedDataParallel):
        waiting: AbstractContextManager[None] = network.no_sync()
        return waiting
    return nullcontext()


def reset_powersgd_state(network: nn.Module) -> None:
    """Forget what powerSGD has kept of gradients.

    It adds the error of each step to the next, so a NaN would stay for ever.
    """
    state = getattr(network, POWER_SGD_STATE, None)
    if state is not None:
        for kept in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
            kept.clear()
        state.iter = 0


def synchronise(encoder: Encoder, head: nn.Module, world: World) -> None:
    """Copy the coordinator's running statistics, and an objective's head, to all ranks.

    DDP would send the statistics in every step; they are needed only when something is evaluated
    or saved. All ranks train the head alike, as far as their arithmetic is alike.
    """
    if world.size > 1:
        parameters = [parameter.detach() for parameter in head.parameters()]
        for tensor in [*encoder.buffers(), *parameters]:
            broadcast_from_coordinator(world, tensor)


def seed_step(world: World, seed: int, epoch_number: int, step: int) -> None:
    """Seed what an encoder draws at random (dropout) by the step.

    A resumed run then draws as an uninterrupted one. torch.manual_seed would also note the seed,
    with a traceback, for every kind of device that is not there, and never forget it.
    """
    key = derive_key(seed, "step", epoch_number, step, world.rank)
    step_seed = int(key >> np.uint64(1))
    torch.default_generator.manual_seed(step_seed)
    if world.device.type == "cuda":
        torch.cuda.manual_seed(step_seed)


class _EagerDDP(DistributedDataParallel):
    """Is torch's DDP, around a network that is not compiled."""

    _inside_ddp_forward = contextmanager(
        inspect.unwrap(DistributedDataParallel._inside_ddp_forward)
    )


@contextmanager
def _without_compiler() -> Iterator[type[DistributedDataParallel]]:
    """Yield the class of DDP to build with, and keep it from loading torch.compile for nothing.

    DDP asks torch.compile whether it is to work as a compiled network needs it. Loading that takes
    every rank nearly a second; where nobody has loaded it, no network is compiled, and the answer
    is known.
    """
    if "torch._dynamo" in sys.modules:
        yield DistributedDataParallel
        return
    as_by_default = SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")
    vars(torch)["_dynamo"] = SimpleNamespace(utils=as_by_default)
    try:
        yield _EagerDDP
    finally:
        del vars(torch)["_dynamo"]


def _compress(network: DistributedDataParallel, compression: Compression, world: World) -> None:
    """Register the hook that compresses gradients.

    powerSGD sends them whole for its first steps, as its authors advise, and always for layers that
    would not become four times smaller.
    """
    if compression == "powersgd":
        state = powerSGD_hook.PowerSGDState(
            world.group, POWER_SGD_RANK, POWER_SGD_WHOLE_STEPS, min_compression_rate=4
        )
        network.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        setattr(network, POWER_SGD_STATE, state)
    elif compression != "none":
        hooks = {
            "float16": default_hooks.fp16_compress_hook,
            "bfloat16": default_hooks.bf16_compress_hook,
        }
        network.register_comm_hook(world.group, hooks[compression])


def _settle_buckets(network: nn.Module, module: nn.Module, example: Any) -> None:
    """Let DDP see one backward pass before training.

    It lays its gradient buckets out anew after the first one, and with them the order of its sums.
    After one here, every step of a run sums alike, and a resumed run equals an uninterrupted one to
    the bit.
    """
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    network(example).sum().backward()
    module.zero_grad()
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])
