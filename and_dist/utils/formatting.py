"""Figures as people read them."""

from __future__ import annotations

from typing import Any
from unicodedata import category

NO_TEXT = ("Cc", "Cs", "Zl", "Zp")
"""Controls, halves of letters, ends of lines."""


def format_seconds(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def as_text(name: str) -> str:
    """Of a file's name, which may hold anything: what is no UTF-8 and what steers a terminal
    becomes U+FFFD."""
    return "".join("\ufffd" if category(letter) in NO_TEXT else letter for letter in name)


def safe_lines(said: str) -> str:
    """What is said, with names in it."""
    return "\n".join(map(as_text, said.split("\n")))


def describe_step(record: dict[str, Any], ranks: int, rank_word: str) -> str:
    """The figures of a step's line in metrics.jsonl."""
    speed = f"{record['images_per_s']:,.0f} images/s"
    if ranks > 1:
        speed += f", {record['images_per_s'] / ranks:,.0f} a {rank_word}"
    return (
        f"loss {record['loss']:.3f}  lr {record['lr']:g}  {speed}  "
        f"{100 * record['data_wait']:.0f} % waiting for data  {record['memory_mb'] / 1e3:.1f} GB"
    )
