"""Format figures and names for people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from unicodedata import category

NO_TEXT = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories that are replaced in names: controls, surrogates, line and paragraph ends."""

BARS = "▁▂▃▄▅▆▇█"

BREAKS = re.compile(r"[/_=…](?=\S)|(?<!\d)[-.,](?=\S)|[-.,](?=[^\s\d])")
"""The places at which a long name may go on in the next line: behind a slash, an underscore and the
like, and behind a point, comma or hyphen that is not within a number or a date."""


def format_seconds(seconds: float) -> str:
    """Return a duration as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def three_digits(number: float) -> str:
    """Return a number in three digits: 0.0123, 4.56, 789, 1,234."""
    return f"{number:.3g}" if number < 999.5 else f"{number:,.0f}"


def in_bytes(number: float) -> str:
    """Return a number of bytes with its unit: 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{three_digits(number)} TB"


def percent(share: float | None) -> str:
    """Return a share as a percentage with one decimal; - for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def sparkline(values: Sequence[float]) -> str:
    """Return values as a row of bars, the lowest of which is the first of BARS."""
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)


def pieces_of(text: str) -> list[str]:
    """Split a text where a long name may go on in the next line, which is never within a word."""
    ends = [match.end() for match in BREAKS.finditer(text)]
    return [text[start:end] for start, end in pairwise([0, *ends, len(text)])]


def elide(name: str, most: int) -> str:
    """Return a name of at most `most` letters; a longer one has … in place of its middle.

    The names of a folder often differ at their ends, so as many whole pieces of the end are kept as
    there is room for behind the first piece. A name of one piece loses its end.
    """
    if len(name) <= most:
        return name
    first, *others = pieces_of(name)
    room = most - 1
    if not others:
        return f"{name[:room]}…"
    head, tail = first[: room // 2], ""
    while others and len(head + others[-1] + tail) <= room:
        tail = others.pop() + tail
    return f"{head}…{tail or others[-1][len(head) - room :]}"


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
