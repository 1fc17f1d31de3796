"""Choose how many rows become anchors in a round, and which (Eq. 6). N all rows, A anchors."""

from __future__ import annotations

from fractions import Fraction

from torch import Tensor


def num_anchors(
    num_rows: int, round_index: int, num_rounds: int, share: float | None = None
) -> int:
    """Return floor(N * r / R) anchors for round r of R (Eq. 6), or floor(N * r * share).

    Args:
        num_rows: N, the rows of the bank.
        round_index: r, from 0, the round without anchors.
        num_rounds: R, the rounds after round 0.
        share: Share of the rows that every round adds to the anchors; None is 1 / R.

    Example:
        >>> [and_dist.num_anchors(1000, r, 4) for r in range(5)]
        [0, 250, 500, 750, 1000]
        >>> [and_dist.num_anchors(1000, r, 2, share=0.25) for r in range(3)]
        [0, 250, 500]
    """
    if num_rounds < 1:
        raise ValueError(f"a curriculum needs at least one round, got {num_rounds}")
    if not 0 <= round_index <= num_rounds:
        raise ValueError(f"round {round_index} is not one of 0..{num_rounds}")
    # As a fraction of what is written, because 3 * 0.1 is more than 0.3 in binary digits.
    each = Fraction(1, num_rounds) if share is None else Fraction(str(share))
    if not 0 < each * num_rounds <= 1:
        raise ValueError(f"{num_rounds} rounds of {share:g} of the rows each are no share of them")
    return int(num_rows * round_index * each)


def select_anchors(entropy_N: Tensor, count: int) -> Tensor:
    """Return the `count` rows of lowest entropy, ascending, ties by the lower row."""
    return entropy_N.argsort(stable=True)[:count]
