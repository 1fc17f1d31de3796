"""Choose how many rows become anchors in a round, and which (Eq. 6). N all rows, A anchors."""

from __future__ import annotations

from torch import Tensor


def num_anchors(num_rows: int, round_index: int, num_rounds: int) -> int:
    """Return floor(N * r / R) anchors for round r of R (Eq. 6).

    Args:
        num_rows: N, the rows of the bank.
        round_index: r, from 0, the round without anchors.
        num_rounds: R, the rounds after round 0.

    Example:
        >>> [and_dist.num_anchors(1000, r, 4) for r in range(5)]
        [0, 250, 500, 750, 1000]
    """
    if num_rounds < 1:
        raise ValueError(f"a curriculum needs at least one round, got {num_rounds}")
    if not 0 <= round_index <= num_rounds:
        raise ValueError(f"round {round_index} is not one of 0..{num_rounds}")
    return num_rows * round_index // num_rounds


def select_anchors(entropy_N: Tensor, count: int) -> Tensor:
    """Return the `count` rows of lowest entropy, ascending, ties by the lower row."""
    return entropy_N.argsort(stable=True)[:count]
