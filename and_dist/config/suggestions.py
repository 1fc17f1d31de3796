"""Suggest keys and names for misspelt ones, by their letters and by their meaning. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher, get_close_matches

from pydantic import BaseModel

MOST_SUGGESTED = 3
LIKENESS = 0.75
"""The least share of letters in which a suggestion agrees."""
LONGEST_GIVEN = 100
"""The most letters of a name that suggestions are looked for: comparing takes their square."""


def all_keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each key below a section, with dots, and its meaning."""
    for name, field in section.model_fields.items():
        kind, key = field.annotation, f"{prefix}{name}"
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield key, ""
            yield from all_keys(kind, f"{key}.")
        else:
            yield key, field.description or ""


def near_keys(given: str, root: type[BaseModel]) -> list[str]:
    """Return keys that may be meant by one that is none, the likeliest first.

    A key is near if it is spelt alike, as a whole or in its last part, or if its meaning begins
    with the words of the given one, as "learning rate" does for optim.lr.
    """
    if len(given) > LONGEST_GIVEN:
        return []
    last = given.rpartition(".")[2]
    words = re.sub(r"[^a-z0-9]+", " ", last.lower()).strip()
    scores = {}
    for key, meaning in all_keys(root):
        own_last = key.rpartition(".")[2]
        spelt = max(_likeness(given, key), _likeness(last, own_last))
        means = 0.9 if " " in words and meaning.lower().startswith(words) else 0.0
        scores[key] = max(spelt, means)
    near = [key for key, score in scores.items() if score >= LIKENESS]
    return sorted(near, key=lambda key: (-scores[key], key.count("."), key))[:MOST_SUGGESTED]


def did_you_mean(near: Iterable[str]) -> str:
    """Return a question after a comma, or nothing where there is no suggestion."""
    found = list(near)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def near_names(given: str, known: Iterable[str]) -> str:
    """Return a question about the known name that is nearest, or nothing."""
    is_short = len(given) <= LONGEST_GIVEN
    near = get_close_matches(given, list(known), n=1, cutoff=LIKENESS) if is_short else []
    return did_you_mean(near)


def _likeness(given: str, known: str) -> float:
    """Return the share of letters in which two names agree."""
    return SequenceMatcher(None, given, known).ratio()
