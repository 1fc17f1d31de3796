"""Hold the memory bank, one contiguous shard of rows a rank (Eq. 8).

S rows of this shard, N all rows, G global batch, D feature, X any rows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from and_dist.method.partition_gpu import ATTENTION
from and_dist.utils.counter_random import derive_key, draw_uniform

ROWS_PER_DRAW = 65536


def shard_range(num_rows: int, rank: int, size: int) -> tuple[int, int]:
    """Return the rows [start, stop) of a rank, cut like torch.chunk: the last may be empty.

    Args:
        num_rows: N, the rows of the whole bank.
        rank: The rank, from 0.
        size: W, the number of ranks.

    Example:
        >>> [and_dist.shard_range(10, rank, 3) for rank in range(3)]
        [(0, 4), (4, 8), (8, 10)]
    """
    chunk = -(-num_rows // size)
    return min(rank * chunk, num_rows), min((rank + 1) * chunk, num_rows)


def all_shards(num_rows: int, size: int) -> list[tuple[int, int]]:
    """Return the rows [start, stop) of every rank."""
    return [shard_range(num_rows, rank, size) for rank in range(size)]


class MemoryBank:
    """Holds the rows [start, start + S) of a bank of num_rows rows (Eq. 8).

    Args:
        features_SD: The first rows of this shard, [S, D], of unit norm; they are kept, not copied.
        start: The first row of this shard, from shard_range().
        num_rows: N, the rows of the whole bank.
        update_rate: eta, the weight of a new feature.
        renormalise: Scale updated rows to unit norm, as the published code does.
        products: Type that rows are rounded to before they are multiplied; None rounds nothing.

    Example:
        >>> rows_SD = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
        >>> bank = and_dist.MemoryBank(rows_SD, start=0, num_rows=6, update_rate=0.5)
        >>> new_GD = torch.nn.functional.normalize(torch.randn(2, 8), dim=1)
        >>> bank.update(torch.tensor([0, 3]), new_GD)
        >>> bank.features_SD.norm(dim=1).allclose(torch.ones(6))
        True
    """

    def __init__(
        self,
        features_SD: Tensor,
        start: int,
        num_rows: int,
        update_rate: float,
        renormalise: bool = True,
        products: torch.dtype | None = None,
    ) -> None:
        """Take the shard's rows as they are, without a copy."""
        assert 0 <= start <= start + len(features_SD) <= num_rows
        self.features_SD = features_SD
        self.multiplied_SD = features_SD
        """The rows as log_partition takes them: on a GPU, a copy that is rounded to `products`."""
        if features_SD.device.type == "cuda" and products not in (None, features_SD.dtype):
            self.multiplied_SD = features_SD.to(products)
        self.start = start
        self.num_rows = num_rows
        self.update_rate = update_rate
        self.renormalise = renormalise
        self.products = products
        """The type that log_partition rounds rows to; None multiplies them as they are stored."""
        self.form = ATTENTION
        """The form in which a GPU computes the partition (partition_gpu.py)."""

    @property
    def stop(self) -> int:
        """Return the row after the last of this shard."""
        return self.start + len(self.features_SD)

    def locate(self, rows_X: Tensor) -> tuple[Tensor, Tensor]:
        """Return which global rows lie in this shard, and where; 0 for the others.

        The shard must not be empty.
        """
        local_X = rows_X - self.start
        is_here_X = (local_X >= 0) & (local_X < len(self.features_SD))
        return is_here_X, local_X.where(is_here_X, 0)

    @torch.no_grad()
    def update(self, rows_G: Tensor, features_GD: Tensor) -> None:
        """Update the rows that lie here: m <- normalise((1 - eta) m + eta x) (Eq. 8).

        A row that occurs twice takes its first feature; -1 is no row. Rows outside the shard
        duplicate a valid write or rewrite an old value, so shapes are static and the GPU never
        syncs.
        """
        if len(self.features_SD) == 0 or len(rows_G) == 0:
            return
        is_here_G, local_G = self.locate(rows_G)
        old_GD = self.features_SD[local_G]
        new_GD = torch.lerp(old_GD.to(features_GD.dtype), features_GD.detach(), self.update_rate)
        if self.renormalise:
            new_GD = functional.normalize(new_GD, dim=1)
        first_G = _first_occurrence(local_G.where(is_here_G, -1))
        # Elements whose row is elsewhere write what the first element of this shard writes.
        source_G = first_G.where(is_here_G, is_here_G.int().argmax())
        values_GD = new_GD.to(old_GD.dtype).where(is_here_G[:, None], old_GD)
        places_G, values_GD = local_G[source_G], values_GD[source_G]
        self.features_SD[places_G] = values_GD
        if self.multiplied_SD is not self.features_SD:
            self.multiplied_SD[places_G] = values_GD.to(self.multiplied_SD.dtype)

    def round_again(self) -> None:
        """Round the copy anew, after something other than update() has written rows."""
        if self.multiplied_SD is not self.features_SD:
            self.multiplied_SD.copy_(self.features_SD)


def _first_occurrence(keys_G: Tensor) -> Tensor:
    """Return for each element the lowest position that holds the same key."""
    sorted_G, positions_G = keys_G.sort(stable=True)
    is_first_G = torch.ones_like(sorted_G, dtype=torch.bool)
    is_first_G[1:] = sorted_G[1:] != sorted_G[:-1]
    slots_G = torch.arange(len(keys_G), device=keys_G.device)
    run_start_G = slots_G.where(is_first_G, 0).cummax(dim=0).values
    return torch.empty_like(positions_G).scatter_(0, positions_G, positions_G[run_start_G])


def draw_uniform_rows(start: int, stop: int, dim: int, seed: int) -> Tensor:
    """Return rows [start, stop) of the first bank: uniform in +-1/sqrt(D/3), by (seed, row)."""
    key, bound = derive_key(seed, "bank"), (dim / 3) ** -0.5
    rows_SD = np.empty((stop - start, dim), dtype=np.float32)
    for at in range(start, stop, ROWS_PER_DRAW):
        rows = np.arange(at, min(at + ROWS_PER_DRAW, stop))
        rows_SD[at - start : at - start + len(rows)] = bound * (
            2 * draw_uniform(key, rows, dim) - 1
        )
    return torch.from_numpy(rows_SD)
