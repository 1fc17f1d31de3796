"""Count the launches and waits of a tile of discovery's scan on the pretend GPU."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from torch.nn import functional

from and_dist.method import entropy
from and_dist.method.memory_bank import MemoryBank
from tests.loading import world_of
from tests.pretend.device import pretend_gpu
from tests.pretend.tensors import CUDA

MOST_LAUNCHES = 11
"""Launches of a tile: a product, exp, a multiplication, and four sums, each added in place."""


def counts_of_scan(num_blocks: int) -> Counter[str]:
    """Return launches and waits of a scan over so many blocks, the smallest there are."""
    random = torch.Generator().manual_seed(0)
    rows_SD = torch.randn(num_blocks * entropy.SMALLEST_BLOCK, 16, generator=random)
    with pretend_gpu() as gpu:
        on_gpu_SD = functional.normalize(rows_SD, dim=1).to(CUDA)
        bank = MemoryBank(on_gpu_SD, 0, len(on_gpu_SD), 0.5)
        entropy.scan_pairs(bank, replace(world_of(), device=CUDA), 0.1, memory_bytes=1)
    return Counter(launches=gpu.launches.total(), waits=gpu.host_waits().total())


def test_the_host_waits_for_no_tile_of_the_scan() -> None:
    """n blocks make n (n + 1) tiles: what belongs to a tile grows with the square of n.

    Of counts at 2, 4 and 6 blocks the second difference is 8 times what belongs to a tile.
    """
    at_2, at_4, at_6 = (counts_of_scan(num_blocks) for num_blocks in (2, 4, 6))
    per_tile = {key: (at_2[key] - 2 * at_4[key] + at_6[key]) / 8 for key in ("launches", "waits")}
    assert per_tile["waits"] == 0
    assert 5 < per_tile["launches"] <= MOST_LAUNCHES
