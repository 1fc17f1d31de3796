"""Count the bytes that tensors of the pretend GPU hold at once, and the most they ever held."""

from __future__ import annotations

import weakref

from torch import Tensor


class LiveMemory:
    """Follows the storages of tensors from their first sight to their end.

    torch keeps one Python object for a storage while anything uses it, so its end can be awaited.
    Scratch memory within an operator is not seen.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def follow(self, tensor: Tensor) -> None:
        """Count the storage of a tensor unless it is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._end, key)

    def forget_peak(self) -> None:
        """Begin to look for the peak anew."""
        self.peak = self.bytes

    def _end(self, key: int) -> None:
        """Take a storage off the count."""
        self.bytes -= self._sizes.pop(key)
