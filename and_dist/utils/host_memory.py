"""Keep memory of the host from step to step."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of mallopt, as glibc's malloc.h numbers them."""
MOST_BYTES = 2**31 - 1
"""The most that mallopt takes."""


def keep_freed_blocks() -> None:
    """Let malloc keep the large blocks that this process frees, for the next ones that it asks for.

    glibc gives a freed block of 32 MB or more back to the system. The activations of a large batch
    are such blocks, and each step would take them anew, page by page, all of them set to zero.
    Passes of `small` over 1,024 images of 28 pixels took 1.6 times as long by that. Do nothing
    where malloc has no such options.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MOST_BYTES)
        mallopt(M_TRIM_THRESHOLD, MOST_BYTES)
