"""Define the callbacks by which long work reports its progress. No torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

Advance = Callable[[float], None]
"""A function that is told each further share of some work that is done."""


Phase = Callable[[str], AbstractContextManager[Advance]]
"""A function from the name of some work to a context in which its progress is reported."""


def silently(share: float) -> None:
    """Ignore progress: an Advance for when nobody watches."""
