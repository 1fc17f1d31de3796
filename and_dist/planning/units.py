"""Format times and counts for people, in three digits. No torch."""

from __future__ import annotations

from and_dist.utils.formatting import three_digits


def in_time(seconds: float) -> str:
    """Return a time with its unit: 2.5 h."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if seconds >= 2 * length:
            return f"{three_digits(seconds / length)} {unit}"
    if seconds >= 0.9995:
        return f"{seconds:.2f} s"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 0.9995e-3 else f"{1e6 * seconds:.3g} us"


def in_count(number: float) -> str:
    """Return a count as 1.28M or 1B, or in full below a million."""
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if number >= 0.9995 * size:
            return f"{three_digits(number / size)}{unit}"
    return f"{number:,.0f}"
