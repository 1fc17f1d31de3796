"""Draw counter-based random numbers: a value is a function of (key, counter), never of a state.

The generator is SplitMix64 (Steele, Lea, Flood 2014). Its state moves by a constant step and its
output is a bijective mix of the state, so any draw of any stream can be computed directly, in any
order.

X any counters.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

U64 = NDArray[np.uint64]
GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""The step of SplitMix64's state."""


def mix(state: ArrayLike) -> U64:
    """Apply the finaliser of SplitMix64 to each element."""
    mixed = np.asarray(state, dtype=np.uint64)
    # 64-bit overflow is part of the algorithm, as in all of this module.
    with np.errstate(over="ignore"):
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def derive_key(*parts: int | str) -> np.uint64:
    """Return the key of a seed and a purpose, such as derive_key(seed, "order", epoch)."""
    key = np.uint64(0)
    for part in parts:
        word = np.uint64(zlib.crc32(part.encode()) if isinstance(part, str) else part)
        with np.errstate(over="ignore"):
            key = np.uint64(mix(key * GAMMA + word + GAMMA))
    return key


def draw_bits(key: np.uint64, counters_X: ArrayLike, num_draws: int) -> U64:
    """Return words of 64 bits [X, num_draws], one stream a counter."""
    with np.errstate(over="ignore"):
        stream_X = mix(key ^ mix(np.asarray(counters_X, dtype=np.uint64) * GAMMA + GAMMA))
        steps = np.arange(1, num_draws + 1, dtype=np.uint64) * GAMMA
        return mix(stream_X[..., None] + steps)


def draw_uniform(key: np.uint64, counters_X: ArrayLike, num_draws: int) -> NDArray[np.float64]:
    """Return numbers in [0, 1) [X, num_draws], one stream a counter."""
    # A float64 holds 53 bits exactly.
    high_bits = draw_bits(key, counters_X, num_draws) >> np.uint64(11)
    return high_bits.astype(np.float64) * 2.0**-53
