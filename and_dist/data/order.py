"""Order the rows of an epoch: (seed, epoch, position) -> row, computed by a keyed permutation.

The permutation is never stored. A Feistel network on pairs (left, right) is a bijection whatever
its round function is. A position that maps outside the set is mapped again until it falls inside,
which keeps it a bijection (cycle walking).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from and_dist.utils.counter_random import U64, derive_key, mix

Rows = NDArray[np.int64]
"""Row ids; -1 is none."""
NUM_ROUNDS = 8
"""The number of rounds of the Feistel network, each with its own key."""
SMALLEST_LOCAL_BATCH = 2
"""The smallest batch of a rank: batch statistics over a single image are undefined."""


def permute(positions: ArrayLike, num_rows: int, seed: int, epoch: int) -> Rows:
    """Return the rows at the given positions of an epoch; all positions give every row once."""
    height = math.isqrt(num_rows - 1) + 1 if num_rows > 1 else 1
    width = -(-num_rows // height)
    keys = mix(derive_key(seed, "order", epoch) + np.arange(NUM_ROUNDS, dtype=np.uint64))
    rows = _feistel(np.asarray(positions, dtype=np.uint64), height, width, keys)
    while (outside := rows >= num_rows).any():
        rows[outside] = _feistel(rows[outside], height, width, keys)
    return rows.astype(np.int64)


def _feistel(cells: U64, height: int, width: int, keys: U64) -> U64:
    """Map cells by one bijection of [0, height * width)."""
    left, right = cells // np.uint64(width), cells % np.uint64(width)
    with np.errstate(over="ignore"):
        for key_left, key_right in keys.reshape(-1, 2):
            left = (left + mix(right ^ key_left) % np.uint64(height)) % np.uint64(height)
            right = (right + mix(left ^ key_right) % np.uint64(width)) % np.uint64(width)
    return left * np.uint64(width) + right


class LocalRows(NamedTuple):
    """Hold the images that a rank reads in a step and the rows they count for (-1 is padding)."""

    images_B: Rows
    rows_B: Rows

    def part(self, start: int, stop: int) -> LocalRows:
        """Return those from position `start` to `stop`."""
        return LocalRows(self.images_B[start:stop], self.rows_B[start:stop])


@dataclass(frozen=True)
class Order:
    """Give the rows of every step of every epoch, at any world size."""

    num_rows: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of global batches of an epoch."""
        return -(-self.num_rows // self.batch_size)

    def num_images(self, step: int) -> int:
        """Return the images of one global batch; the last of an epoch may be smaller."""
        return min(self.batch_size, self.num_rows - step * self.batch_size)

    def global_rows(self, epoch: int, step: int) -> Rows:
        """Return the rows [G] of one global batch, in the order of the epoch."""
        start = step * self.batch_size
        positions = np.arange(start, start + self.num_images(step))
        return permute(positions, self.num_rows, self.seed, epoch)

    def local_rows(self, epoch: int, step: int, rank: int, size: int) -> LocalRows:
        """Return this rank's contiguous part of the global batch.

        It is equally long on every rank. Where the batch does not divide, images of its beginning
        are read again with a row of -1.
        """
        rows_G = self.global_rows(epoch, step)
        length = max(-(-len(rows_G) // size), SMALLEST_LOCAL_BATCH)
        slots_B = np.arange(rank * length, (rank + 1) * length)
        images_B = rows_G[slots_B % len(rows_G)]
        return LocalRows(images_B, np.where(slots_B < len(rows_G), images_B, -1))
