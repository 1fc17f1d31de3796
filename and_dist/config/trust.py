"""Say whether code that a config names may be called. No torch.

encoder.name=module:function is such code. Whoever trains by a config has chosen it; a run folder
may be somebody else's, so the commands that open one ask for --trust.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_is_trusted: ContextVar[bool] = ContextVar("is_trusted", default=False)


def is_trusted() -> bool:
    """Return whether code that a config names may be called."""
    return _is_trusted.get()


@contextmanager
def trusting(is_asked: bool = True) -> Iterator[None]:
    """Let code that configs name be called within the block, if that is asked for."""
    token = _is_trusted.set(is_asked or is_trusted())
    try:
        yield
    finally:
        _is_trusted.reset(token)
