"""Format figures and names for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unicodedata import category

NO_TEXT = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories that are replaced in names: controls, surrogates, line and paragraph ends."""

BARS = "▁▂▃▄▅▆▇█"


def format_seconds(seconds: float) -> str:
    """Return a duration as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def percent(share: float | None) -> str:
    """Return a share as a percentage with one decimal; - for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def sparkline(values: Sequence[float]) -> str:
    """Return values as a row of bars, the lowest of which is the first of BARS."""
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)


def as_text(name: str) -> str:
    """Return a file's name with U+FFFD for whatever is not UTF-8 or could control a terminal."""
    return "".join("\ufffd" if category(letter) in NO_TEXT else letter for letter in name)


def safe_lines(text: str) -> str:
    """Return text that holds file names, with each of its lines made safe by as_text."""
    return "\n".join(map(as_text, text.split("\n")))


def describe_step(record: dict[str, Any], ranks: int, rank_word: str) -> str:
    """Return the figures of a step's record in metrics.jsonl as one line for the console."""
    speed = f"{record['images_per_s']:,.0f} images/s"
    if ranks > 1:
        speed += f", {record['images_per_s'] / ranks:,.0f} a {rank_word}"
    return (
        f"loss {record['loss']:.3f}  lr {record['lr']:g}  {speed}  "
        f"{100 * record['data_wait']:.0f} % waiting for data  {record['memory_mb'] / 1e3:.1f} GB"
    )
