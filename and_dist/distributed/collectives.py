"""Communicate between ranks, by the few collectives the program uses, named for what they mean.

B local batch, G = W * B global batch in rank order, X anything.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, overload

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from and_dist.distributed.launch_env import AllRanksDiskError, AllRanksError
from and_dist.distributed.world import World
from and_dist.utils.disk_errors import DiskError

MESSAGE_BYTES = 960
"""The most of an error message that travels to the other ranks."""
OF_A_DISK = "disk: "
"""The beginning of the message of a DiskError."""
ARRAY = "__array__"
"""The key that marks a numpy array in JSON."""
T = TypeVar("T")


def gather_batch(world: World, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return every rank's [B, ...] tensors as [G, ...], all of them by one collective.

    B is the same on every rank; a rank with fewer rows pads (with row ids of -1).
    """
    if world.size == 1:
        return [tensor.detach() for tensor in tensors]
    packed_B = _pack(tensors)
    packed_G = packed_B.new_empty((world.size * packed_B.shape[0], packed_B.shape[1]))
    dist.all_gather_into_tensor(packed_G, packed_B, group=world.group)
    return _unpack(packed_G, tensors)


def exchange_parts(world: World, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Turn partial results [G, ...] about all queries into [W, B, ...] about this rank's own.

    This is a reduce-scatter whose operator is left to the caller (merge), in one collective.
    """
    if world.size == 1:
        return [tensor[None] for tensor in tensors]
    packed_G = _pack(tensors)
    received_G = torch.empty_like(packed_G)
    dist.all_to_all_single(received_G, packed_G, group=world.group)
    return [t.unflatten(0, (world.size, -1)) for t in _unpack(received_G, tensors)]


def reduce_sum(world: World, tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place, and return it."""
    if world.size > 1:
        dist.all_reduce(tensor, group=world.group)
    return tensor


def gather_to_coordinator(world: World, tensor_X: Tensor) -> Tensor | None:
    """Return every rank's [X, ...] as [W, X, ...] on the coordinator, None elsewhere.

    X is the same on every rank.
    """
    if world.size == 1:
        return tensor_X[None]
    if not world.is_coordinator:
        dist.gather(tensor_X.contiguous(), None, group=world.group, group_dst=0)
        return None
    gathered_WX = tensor_X.new_empty(world.size, *tensor_X.shape)
    dist.gather(tensor_X.contiguous(), list(gathered_WX), group=world.group, group_dst=0)
    return gathered_WX


def broadcast_from_coordinator(world: World, tensor: Tensor) -> Tensor:
    """Copy the coordinator's values to every rank, in place, and return the tensor."""
    if world.size > 1:
        dist.broadcast(tensor, group=world.group, group_src=0)
    return tensor


@overload
def on_coordinator(
    world: World, what: str, compute: Callable[[], Tensor], like: Tensor
) -> Tensor: ...


@overload
def on_coordinator(world: World, what: str, compute: Callable[[], T]) -> T: ...


def on_coordinator(
    world: World, what: str, compute: Callable[[], Any], like: Tensor | None = None
) -> Any:
    """Compute something on the coordinator alone and return it on every rank.

    The result is a tensor of the type and shape of `like`, or a value that broadcast_object takes.
    If the computation fails, all ranks raise AllRanksError, which says that `what` failed.
    """
    result, encoded = torch.empty(0) if like is None else torch.empty_like(like), b""
    with raise_on_all_ranks(world, what):
        if world.is_coordinator:
            value = compute()
            if like is None:
                encoded = _encode(value)
            else:
                assert value.shape == like.shape
                result = value.to(like.dtype).contiguous()
    if like is not None:
        return broadcast_from_coordinator(world, result)
    return _decode(_broadcast_bytes(world, encoded))


def broadcast_object(world: World, value: T) -> T:
    """Return the coordinator's value on every rank: plain JSON values and numpy arrays.

    Tuples come back as lists and keys of dictionaries as strings, at any world size alike. Nothing
    is pickled, so nothing that is received is executed.
    """
    return on_coordinator(world, "broadcasting a value", lambda: value)


def gather_objects(world: World, value: Any) -> list[Any]:
    """Return a value of every rank in rank order, each as broadcast_object would return it.

    It is too slow for a step.
    """
    encoded = b""
    with raise_on_all_ranks(world, "gathering values"):
        encoded = _encode(value)
    content = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    (lengths_W,) = gather_batch(world, [torch.tensor([len(content)], device=world.device)])
    padded_1X = torch.zeros(1, int(lengths_W.max()), dtype=torch.uint8)
    padded_1X[0, : len(content)] = content
    (padded_WX,) = gather_batch(world, [padded_1X.to(world.device)])
    received = zip(padded_WX.cpu().numpy(), lengths_W.tolist(), strict=True)
    return [_decode(bytes(padded_X[:length])) for padded_X, length in received]


def equal_blocks(
    world: World, rows_X: Tensor, size: int, most_in_all: int | None = None
) -> list[Tensor]:
    """Cut this rank's rows into blocks, padded with -1: as many, and as long, on every rank.

    Blocks are so short that those of all ranks together hold at most `most_in_all` rows, so that
    what is gathered of them is no larger in a larger world.
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
    """Return values_X at some positions, and zeros at those of -1, the padding of equal_blocks."""
    taken_Q = values_X.new_zeros(len(positions_Q), *values_X.shape[1:])
    is_real_Q = positions_Q >= 0
    taken_Q[is_real_Q] = values_X[positions_Q[is_real_Q]]
    return taken_Q


@contextmanager
def raise_on_all_ranks(world: World, what: str) -> Iterator[None]:
    """Enclose work of each rank: if one fails, all raise AllRanksError, which names that rank.

    It is AllRanksDiskError for a DiskError.
    """
    message = ""
    cause: Exception | None = None
    try:
        yield
    except (DiskError, AllRanksDiskError) as error:
        message, cause = f"{OF_A_DISK}{error}", error
    except Exception as error:
        message, cause = f"{type(error).__name__}: {error}", error
    words = message.encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES, b"\0")
    mine_B = torch.frombuffer(bytearray(words), dtype=torch.uint8)[None].to(world.device)
    (all_W,) = gather_batch(world, [mine_B])
    if not bool(all_W.any()):
        return
    for rank, row in enumerate(all_W.cpu()):
        text = bytes(row.tolist()).rstrip(b"\0").decode(errors="replace")
        if text.startswith(OF_A_DISK):
            told = text.removeprefix(OF_A_DISK)
            raise AllRanksDiskError(f"{what} failed on rank {rank}: {told}") from cause
        if text:
            raise AllRanksError(f"{what} failed on rank {rank}: {text}") from cause


def _broadcast_bytes(world: World, content: bytes) -> bytes:
    """Return the coordinator's bytes on every rank: their number first, then they themselves."""
    if world.size == 1:
        return content
    length = torch.tensor(len(content), device=world.device)
    length = broadcast_from_coordinator(world, length)
    buffer_X = torch.zeros(int(length), dtype=torch.uint8)
    if world.is_coordinator:
        buffer_X = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    received_X = broadcast_from_coordinator(world, buffer_X.to(world.device))
    return bytes(received_X.cpu().numpy())


def _encode(value: Any) -> bytes:
    """Write a value as JSON; TypeError for what is neither plain nor an array."""
    return json.dumps(value, default=_encode_array).encode()


def _encode_array(value: Any) -> dict[str, Any]:
    """Write a numpy array as a dictionary that _decode_array recognises."""
    if not isinstance(value, np.ndarray) or value.dtype.hasobject:
        raise TypeError(f"{type(value).__name__} is neither plain JSON nor an array of numbers")
    data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
    return {ARRAY: value.dtype.str, "shape": value.shape, "data": data}


def _decode(content: bytes) -> Any:
    """Read what _encode wrote."""
    return json.loads(content, object_hook=_decode_array)


def _decode_array(value: dict[str, Any]) -> Any:
    """Return the numpy array that a dictionary stands for, or the dictionary itself."""
    if ARRAY not in value:
        return value
    data = base64.b64decode(value["data"])
    return np.frombuffer(bytearray(data), value[ARRAY]).reshape(value["shape"])


def _pack(tensors: Sequence[Tensor]) -> Tensor:
    """Lay [X, ...] tensors of any type side by side as bytes [X, width]."""
    return torch.cat([_as_bytes(tensor) for tensor in tensors], dim=1)


def _as_bytes(tensor: Tensor) -> Tensor:
    """Return a tensor [X, ...] as bytes [X, width]."""
    # A copy, because .contiguous() keeps odd strides along dimensions of length 1.
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).flatten()
    width = math.prod(tensor.shape[1:]) * tensor.element_size()
    return flat.view(torch.uint8).view(tensor.shape[0], width)


def _unpack(packed_X: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors that _pack laid side by side, of the types and widths of `like`."""
    unpacked, at = [], 0
    for tensor in like:
        width = math.prod(tensor.shape[1:]) * tensor.element_size()
        piece = packed_X[:, at : at + width].clone(memory_format=torch.contiguous_format)
        values = piece.flatten().view(tensor.dtype)
        unpacked.append(values.view(packed_X.shape[0], *tensor.shape[1:]))
        at += width
    return unpacked
