"""Time the parts of discovery on a GPU and extrapolate them to all of ImageNet.

    python -m benchmarks.device.discovery_times [--rows N]

The scan of all pairs is timed over a part of the bank with several sizes of blocks, then bare
matrix products in three arithmetics, which are the floor of a scan, then faiss's exact search,
which is left out where faiss is not installed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor

from and_dist.distributed.world import World, open_world
from and_dist.method import entropy
from and_dist.method.memory_bank import MemoryBank
from benchmarks.device.exact import unit_rows
from benchmarks.device.requirements import require_gpu

IMAGENET = 1_281_167
DIM = 128
TEMPERATURE = 0.1
ROWS_SCANNED = 131_072
SIDE = 16_384
QUERIES, BLOCKS_OF_QUERIES = 2048, 8
SCANS = ((200e6, 4096), (2e9, 4096), (8e9, 16_384), (24e9, 32_768))
"""Bytes that a scan may take, and the largest block of rows."""
REPEATS = 10


def seconds_of(work: Callable[[], object]) -> float:
    """Return the time of the second of two runs, the GPU's part included."""
    work()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def time_scan(bank_ND: Tensor, world: World, memory_bytes: int, candidates: int) -> None:
    """Time the scan of the first rows, and extrapolate by the square of their number."""
    few_ND = bank_ND[:ROWS_SCANNED]
    bank = MemoryBank(few_ND, 0, len(few_ND), 0.5)

    def scan() -> object:
        """Scan all pairs of these rows."""
        return entropy.scan_pairs(bank, world, TEMPERATURE, memory_bytes, candidates)

    scan_s = seconds_of(scan)
    size = entropy._block_size(bank, 1, candidates, memory_bytes)
    print(
        f"scan of {len(few_ND):,} rows, memory {memory_bytes / 1e6:,.0f} MB, blocks of {size}, "
        f"{candidates} candidates: {scan_s:.3f} s; of {len(bank_ND):,}: "
        f"{scan_s * (len(bank_ND) / len(few_ND)) ** 2:.1f} s",
        flush=True,
    )


def time_products(bank_ND: Tensor, dtype: torch.dtype, is_tf32: bool = False) -> None:
    """Time one large tile of logits, and extrapolate to the tiles of all pairs, each pair once."""
    left_SD, right_SD = bank_ND[:SIDE].to(dtype), bank_ND[SIDE : 2 * SIDE].to(dtype)

    def multiply() -> None:
        """Compute the tile REPEATS times."""
        for _ in range(REPEATS):
            torch.mm(left_SD, right_SD.T)

    torch.backends.cuda.matmul.allow_tf32 = is_tf32
    tile_s = seconds_of(multiply) / REPEATS
    torch.backends.cuda.matmul.allow_tf32 = False  # torch's default
    num_pairs, pairs_of_tile = len(bank_ND) ** 2 / 2, len(left_SD) * len(right_SD)
    print(
        f"a product of {len(left_SD):,} by {len(right_SD):,} in {'TF32' if is_tf32 else dtype}: "
        f"{1e3 * tile_s:.2f} ms; all pairs once: {tile_s * num_pairs / pairs_of_tile:.2f} s",
        flush=True,
    )


def time_search(bank_ND: Tensor, memory_bytes: int) -> None:
    """Time the exact search for the nearest row of some rows."""
    from and_dist.method.neighbour_search import ShardSearch  # imports faiss, which may be missing

    shard = ShardSearch(bank_ND, 0, 1, memory_bytes)
    blocks = torch.arange(BLOCKS_OF_QUERIES * QUERIES, device=bank_ND.device).split(QUERIES)

    def search() -> None:
        """Find the nearest row of each query."""
        for rows_Q in blocks:
            shard.nearest(bank_ND[rows_Q], rows_Q)

    block_s = seconds_of(search) / len(blocks)
    print(
        f"Flat, {QUERIES:,} of {len(bank_ND):,} rows, memory {memory_bytes / 1e6:,.0f} MB: "
        f"{1e3 * block_s:.1f} ms; all: {block_s * len(bank_ND) / QUERIES:.1f} s",
        flush=True,
    )


def main() -> None:
    """Time all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=IMAGENET, help="rows of the bank")
    given = parser.parse_args()
    require_gpu()
    with open_world("cuda") as world:
        random = torch.Generator(world.device).manual_seed(0)
        bank_ND = unit_rows(given.rows, DIM, torch.float32, random)
        for memory_bytes, largest in SCANS:
            with patch.dict(entropy.LARGEST_BLOCK, cuda=largest):
                for candidates in (0, 2):
                    time_scan(bank_ND, world, int(memory_bytes), candidates)
        for dtype in (torch.float32, torch.bfloat16):
            time_products(bank_ND, dtype)
        time_products(bank_ND, torch.float32, is_tf32=True)
        try:
            for memory_bytes in (200e6, 2e9):
                time_search(bank_ND, int(memory_bytes))
        except ImportError as error:
            print("no search is timed, faiss cannot be imported:", error)


if __name__ == "__main__":
    main()
