"""Choose the memory of discovery where the config says discovery.memory_mb=auto. No torch.

N all rows, K neighbours.
"""

from __future__ import annotations

MEGABYTE = 1_000_000
MEMORY_MB_ON_CPU, MOST_MEMORY_MB_ON_GPU = 200, 8000
"""Megabytes that are taken on a CPU, and at most on a GPU. An H100 scans blocks as large as 8,000
allow 15 times as fast as those of 200, and larger ones no faster."""
SHARE_OF_FREE = 0.1
"""The share that is taken of a GPU's free memory, less what a discovery holds beside."""


def auto_memory_mb(free_bytes: float | None, held_bytes: float, needed_bytes: float) -> int:
    """Return the megabytes with so much free on a GPU, or on a CPU (None).

    `held_bytes` will be taken of what is free, and less than `needed_bytes` would be refused.
    """
    needed_mb = -(-int(needed_bytes) // MEGABYTE)
    if free_bytes is None:
        return max(MEMORY_MB_ON_CPU, needed_mb)
    share = int(SHARE_OF_FREE * (free_bytes - held_bytes) / MEGABYTE)
    return max(MEMORY_MB_ON_CPU, min(MOST_MEMORY_MB_ON_GPU, share), needed_mb)


def table_bytes(num_rows: int, num_neighbours: int) -> int:
    """Return the bytes of the table that every rank holds whole (neighbour_table.py).

    It has K row ids, an entropy and, in the last round, an anchor for every row, of 8 bytes each.
    """
    return 8 * (num_neighbours + 2) * num_rows


def check_bytes(num_rows: int, num_neighbours: int) -> int:
    """Return the bytes that rank 0 takes to check a new table, sorted, beside a copy."""
    return max(16, 24 * num_neighbours) * num_rows


def held_bytes(shard_bytes: int, num_rows: int, num_neighbours: int) -> int:
    """Return what a rank holds during discovery: its shard, the old table and the new, checked."""
    tables = 2 * table_bytes(num_rows, num_neighbours)
    return shard_bytes + tables + check_bytes(num_rows, num_neighbours)
