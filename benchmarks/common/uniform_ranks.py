"""Take the place of all other ranks of a world, each of which sends the same as this one.

Every collective is well defined then: this rank knows what the others would have sent. torch's fake
process group takes the calls, and writes what it likes; then the results are written here. torch
2.15's could be told to do all of this, but not torch 2.11's.

W ranks, X anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def open_uniform_group(rank: int, size: int) -> Iterator[dist.ProcessGroup]:
    """Make a rank's group of uniform ranks the default one."""
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    group = dist.group.WORLD
    assert group is not None
    try:
        with patch.multiple(dist, **{name: partial(_call, name, write) for name, write in WRITE}):
            yield group
    finally:
        dist.destroy_process_group()


def _call(name: str, write: Callable[..., None], *tensors: Any, **options: Any) -> None:
    """Call torch's function of this name, and write the results of uniform ranks."""
    getattr(dist.distributed_c10d, name)(*tensors, **options)
    write(*tensors)


def _write_gathered(output: Tensor, tensor: Tensor) -> None:
    """Write this rank's tensor to the place of every rank."""
    output.view(dist.get_world_size(), *tensor.shape).copy_(tensor)


def _write_exchanged(output: Tensor, tensor: Tensor) -> None:
    """Write what every rank sends to this one: the part that this one would send to itself."""
    parts_WX = tensor.unflatten(0, (dist.get_world_size(), -1))
    output.view(parts_WX.shape).copy_(parts_WX[dist.get_rank()])


def _write_sum(tensor: Tensor) -> None:
    """Sum equal tensors of all ranks in place."""
    tensor.mul_(dist.get_world_size())


def _write_all(tensor: Tensor, gathered: list[Tensor] | None) -> None:
    """Write this rank's tensor to the place of every rank, if this one gathers."""
    for place in gathered or []:
        place.copy_(tensor)


WRITE = (
    ("all_gather_into_tensor", _write_gathered),
    ("all_to_all_single", _write_exchanged),
    ("all_reduce", _write_sum),
    ("gather", _write_all),
)
"""Functions of torch.distributed and what writes their results; a broadcast changes nothing."""
