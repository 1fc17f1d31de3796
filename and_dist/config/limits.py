"""Hold the largest numbers that configs, profiles and options take. No torch, and no pydantic.

Each lies beyond anybody's use, and before the number at which a clock, a library or the memory of a
machine fails.
"""

from __future__ import annotations

MOST_SECONDS = 1_000_000_000
"""The longest duration, of 31 years: clocks of operating systems wait for a day or a century."""
MOST_ROUNDS, MOST_EPOCHS = 5_000, 1_000_000
MOST_ROWS = 10**12
MOST_NODES, MOST_GPUS, MOST_RANKS_OF_A_NODE = 100_000, 1024, 4096
MOST_CORES, MOST_THREADS = 100_000, 512
MOST_GB = 1_000_000
LONGEST_PATH, LONGEST_NAME = 4096, 255
"""The longest path and the longest name in it that Linux takes, in bytes."""
