"""The few collectives the program uses, by what they mean.

B local batch, G = W * B global batch in rank order, X anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from and_dist.distributed.launch_env import AllRanksError
from and_dist.distributed.world import World

MESSAGE_BYTES = 960
T = TypeVar("T")


def gather_batch(world: World, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Every rank's [B, ...] tensors as [G, ...], all of them in one collective.

    B is the same on every rank; a rank with less to say pads (rows of -1).
    """
    if world.size == 1:
        return [tensor.detach() for tensor in tensors]
    packed_B = _pack(tensors)
    packed_G = packed_B.new_empty((world.size * packed_B.shape[0], packed_B.shape[1]))
    dist.all_gather_into_tensor(packed_G, packed_B, group=world.group)
    return _unpack(packed_G, tensors)


def exchange_parts(world: World, tensors: Sequence[Tensor]) -> list[Tensor]:
    """[G, ...] partial results about everyone's queries -> [W, B, ...] about this rank's own.

    A reduce-scatter whose operator is left to the caller (merge), in one collective.
    """
    if world.size == 1:
        return [tensor[None] for tensor in tensors]
    packed_G = _pack(tensors)
    received_G = torch.empty_like(packed_G)
    dist.all_to_all_single(received_G, packed_G, group=world.group)
    return [t.unflatten(0, (world.size, -1)) for t in _unpack(received_G, tensors)]


def reduce_sum(world: World, tensor: Tensor) -> Tensor:
    """The sum over ranks, on every rank; in place."""
    if world.size > 1:
        dist.all_reduce(tensor, group=world.group)
    return tensor


def gather_to_coordinator(world: World, tensor_X: Tensor) -> Tensor | None:
    """[X, ...] of every rank, X equal everywhere -> [W, X, ...] on the coordinator, else None."""
    if world.size == 1:
        return tensor_X[None]
    if not world.is_coordinator:
        dist.gather(tensor_X.contiguous(), None, group=world.group, group_dst=0)
        return None
    gathered_WX = tensor_X.new_empty(world.size, *tensor_X.shape)
    dist.gather(tensor_X.contiguous(), list(gathered_WX), group=world.group, group_dst=0)
    return gathered_WX


def broadcast_from_coordinator(world: World, tensor: Tensor) -> Tensor:
    """The coordinator's values on every rank; in place."""
    if world.size > 1:
        dist.broadcast(tensor, group=world.group, group_src=0)
    return tensor


def gather_objects(world: World, value: T) -> list[T]:
    """Small plain values of every rank, in rank order; not for steps."""
    if world.size == 1:
        return [value]
    values: list[T | None] = [None] * world.size
    dist.all_gather_object(values, value, group=world.group)
    return [v for v in values if v is not None]


def equal_blocks(
    world: World, rows_X: Tensor, size: int, most_in_all: int | None = None
) -> list[Tensor]:
    """This rank's rows in blocks, padded with -1: as many, as long blocks on every rank.

    So long that those of all ranks together hold `most_in_all` rows: what is gathered of them is no
    larger in a larger world.
    """
    if most_in_all is not None:
        size = max(1, min(size, most_in_all // world.size))
    count = torch.tensor([[len(rows_X)]], device=rows_X.device)
    most = int(gather_batch(world, [count])[0].max())
    blocks = []
    for at in range(0, most, size):
        block_Q = rows_X[at : at + size]
        padding = min(size, most - at) - len(block_Q)
        blocks.append(torch.cat([block_Q, block_Q.new_full((padding,), -1)]))
    return blocks


def take_rows(values_X: Tensor, positions_Q: Tensor) -> Tensor:
    """values_X at some positions; zeros at those that are -1, the padding of equal_blocks."""
    taken_Q = values_X.new_zeros(len(positions_Q), *values_X.shape[1:])
    is_real_Q = positions_Q >= 0
    taken_Q[is_real_Q] = values_X[positions_Q[is_real_Q]]
    return taken_Q


@contextmanager
def raise_on_all_ranks(world: World, what: str) -> Iterator[None]:
    """Around work of this rank alone: if it fails on one rank, all raise, and name the rank."""
    message, cause = "", None
    try:
        yield
    except Exception as error:
        message, cause = f"{type(error).__name__}: {error}", error
    words = message.encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES, b"\0")
    mine_B = torch.frombuffer(bytearray(words), dtype=torch.uint8)[None].to(world.device)
    (all_W,) = gather_batch(world, [mine_B])
    if not bool(all_W.any()):
        return
    for rank, row in enumerate(all_W.cpu()):
        text = bytes(row.tolist()).rstrip(b"\0").decode(errors="replace")
        if text:
            raise AllRanksError(f"{what} failed on rank {rank}: {text}") from cause


def _pack(tensors: Sequence[Tensor]) -> Tensor:
    """[X, ...] tensors of any type side by side as bytes [X, width]."""
    return torch.cat([_as_bytes(tensor) for tensor in tensors], dim=1)


def _as_bytes(tensor: Tensor) -> Tensor:
    # A copy, because .contiguous() keeps odd strides along dimensions of length 1.
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).flatten()
    width = math.prod(tensor.shape[1:]) * tensor.element_size()
    return flat.view(torch.uint8).view(tensor.shape[0], width)


def _unpack(packed_X: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    unpacked, at = [], 0
    for tensor in like:
        width = math.prod(tensor.shape[1:]) * tensor.element_size()
        piece = packed_X[:, at : at + width].clone(memory_format=torch.contiguous_format)
        values = piece.flatten().view(tensor.dtype)
        unpacked.append(values.view(packed_X.shape[0], *tensor.shape[1:]))
        at += width
    return unpacked
