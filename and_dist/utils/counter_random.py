"""Counter-based random numbers: a value is a function of (key, counter), never of a state.

SplitMix64 (Steele, Lea, Flood 2014): its state moves by a constant step and its output is a
bijective mix of the state, so any draw of any stream can be computed directly, in any order.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

U64 = NDArray[np.uint64]
GAMMA = np.uint64(0x9E3779B97F4A7C15)


def mix(state: ArrayLike) -> U64:
    """The SplitMix64 finaliser, elementwise."""
    z = np.asarray(state, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def derive_key(*parts: int | str) -> np.uint64:
    """One key from a seed and what it is for, such as derive_key(seed, "order", epoch)."""
    key = np.uint64(0)
    for part in parts:
        word = np.uint64(zlib.crc32(part.encode()) if isinstance(part, str) else part)
        with np.errstate(over="ignore"):
            key = np.uint64(mix(key * GAMMA + word + GAMMA))
    return key


def draw_bits(key: np.uint64, counters_X: ArrayLike, num_draws: int) -> U64:
    """[X, num_draws] words of 64 bits."""
    with np.errstate(over="ignore"):
        stream_X = mix(key ^ mix(np.asarray(counters_X, dtype=np.uint64) * GAMMA + GAMMA))
        steps = np.arange(1, num_draws + 1, dtype=np.uint64) * GAMMA
        return mix(stream_X[..., None] + steps)


def draw_uniform(key: np.uint64, counters_X: ArrayLike, num_draws: int) -> NDArray[np.float64]:
    """[X, num_draws] numbers in [0, 1)."""
    high_bits = draw_bits(key, counters_X, num_draws) >> np.uint64(11)
    return high_bits.astype(np.float64) * 2.0**-53
