"""Bound the memory of work that threads do side by side. No torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Room:
    """Lets threads hold no more bytes together than there is room for, or one of them alone."""

    def __init__(self, size: float) -> None:
        """Start with all of the room free."""
        self._size = size
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, num_bytes: int) -> Iterator[None]:
        """Hold some bytes in the block; wait while others leave too few.

        More than there is room for is let in once nobody else holds any.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + num_bytes <= self._size)
            self._held += num_bytes
        try:
            yield
        finally:
            with self._changed:
                self._held -= num_bytes
                self._changed.notify_all()
