"""Define the callbacks by which long work reports its progress. No torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

Advance = Callable[[float], None]
"""A function that is told each further share of some work that is done."""


Phase = Callable[[str], AbstractContextManager[Advance]]
"""A function from the name of some work to a context in which its progress is reported."""


def silently(share: float) -> None:
    """Ignore progress: an Advance for when nobody watches."""


class Reporter(Protocol):
    """Receives the progress of one piece of work after another, in numbers of items."""

    def start(self, what: str, total: int | None) -> None:
        """Start a piece of work on `total` items; None if their number is not known."""

    def advance(self, count: int) -> None:
        """Count `count` more items as done."""


class NoReport:
    """Ignores progress: a Reporter for when nobody watches."""

    def start(self, what: str, total: int | None) -> None:
        """Ignore a piece of work."""

    def advance(self, count: int) -> None:
        """Ignore items."""
