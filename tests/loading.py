"""A rank on its own, and what its loader gave it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from and_dist.data.loader import Batch
from and_dist.distributed.world import World

CPU = torch.device("cpu")


def world_of(rank: int = 0, size: int = 1) -> World:
    """Its group has no backend: to communicate is an error."""
    group = dist.ProcessGroup(rank, size)
    return World(rank, size, rank, size, CPU, group, group)


def kept(batches: Iterable[Batch]) -> list[Batch]:
    """A loader may write each batch over the one before."""
    return [Batch(batch.images_BCHW.clone(), batch.rows_B) for batch in batches]


def images_by_row(batches: Iterable[Batch]) -> dict[int, Tensor]:
    """Padding left out; no row may come twice."""
    found: dict[int, Tensor] = {}
    for batch in kept(batches):
        for row, image in zip(batch.rows_B.tolist(), batch.images_BCHW, strict=True):
            assert row not in found
            if row >= 0:
                found[row] = image
    return found
