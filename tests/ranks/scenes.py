"""Inputs the rank tests share, and how a rank takes its part of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from and_dist.distributed.world import World
from and_dist.method.memory_bank import MemoryBank, shard_range


class Scene(NamedTuple):
    """A bank with duplicated rows and a batch with padding and a row that occurs twice."""

    bank_ND: Tensor
    inputs_GD: Tensor
    rows_G: Tensor
    neighbours_GK: Tensor
    temperature: float


def build_scene(
    num_rows: int,
    batch: int,
    dim: int = 16,
    num_neighbours: int = 1,
    temperature: float = 0.1,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Scene:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    bank_ND = functional.normalize(normal(num_rows, dim), dim=1)
    if num_rows > 3:
        bank_ND[num_rows - 1] = bank_ND[1]
        bank_ND[num_rows // 2] = bank_ND[1]
    rows_G = torch.randperm(num_rows, generator=random)[:batch]
    rows_G = rows_G[torch.arange(batch) % len(rows_G)]
    if batch > 2:
        rows_G[-1] = rows_G[0]
    neighbours = [
        torch.randperm(num_rows - 1, generator=random)[:num_neighbours] for _ in range(batch)
    ]
    neighbours_GK = torch.stack(neighbours)
    neighbours_GK += neighbours_GK >= rows_G[:, None]
    neighbours_GK[::3] = -1
    return Scene(
        bank_ND.to(dtype), normal(batch, dim).to(dtype), rows_G, neighbours_GK, temperature
    )


def shard_of(
    bank_ND: Tensor, world: World, update_rate: float = 0.5, **options: bool
) -> MemoryBank:
    start, stop = shard_range(len(bank_ND), world.rank, world.size)
    return MemoryBank(bank_ND[start:stop].clone(), start, len(bank_ND), update_rate, **options)


def part_of(batch_GX: Tensor, world: World, padding: int | float) -> Tensor:
    """This rank's contiguous part of a global batch, padded to be as long on every rank."""
    length = -(-len(batch_GX) // world.size)
    part = batch_GX[world.rank * length : (world.rank + 1) * length]
    filler = torch.full((length - len(part), *part.shape[1:]), padding, dtype=part.dtype)
    return torch.cat([part, filler])
