"""Blocks that a step frees and the next one asks for again."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource
import torch
from and_dist.distributed.world import open_world

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.empty(25_000_000).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with open_world("cpu"):
    for _ in range(3):
        faults()
    print(faults())
"""


@pytest.mark.whole_run
def test_a_large_block_is_used_again_without_new_pages() -> None:
    """A block of 100 MB has 24,000 pages of 4 kB."""
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) < 1_000
