"""Tell how far some work has come, whoever watches it. No torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

Advance = Callable[[float], None]
"""Is told of every further share of some work that is done."""


Phase = Callable[[str], AbstractContextManager[Advance]]
"""Around work that takes a while: what it is called -> whom to tell of its progress."""


def silently(share: float) -> None:
    """An Advance for when nobody watches."""
