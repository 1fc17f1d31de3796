"""and-dist, but rank 1 runs out of memory at the place that comes before the command.

The memory is really gone: inside the function of that name the process may map no more than it has.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from and_dist.cli import main
from and_dist.distributed import world
from and_dist.distributed.launch_env import read_launch_env
from and_dist.method import entropy, neighbour_search

M_MMAP_THRESHOLD = -3
"""mallopt(3): blocks of so many bytes or more have a mapping of their own."""
PLACES = {"scan": (entropy._Tiles, "load"), "index": (neighbour_search, "ApproximateSearch")}


def starved(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        if read_launch_env().rank != 1:
            return function(*arguments)
        limits = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), limits[1]))
        try:
            return function(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)

    return call


def main_on_little_memory() -> None:
    """Run `and-dist`, whose arguments begin with the place."""
    # Large blocks are mapped anew each time, so that none is found among freed ones.
    vars(world)["keep_freed_blocks"] = lambda: None
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1_000_000)
    owner, name = PLACES[sys.argv[1]]
    setattr(owner, name, starved(getattr(owner, name)))
    sys.argv = ["and-dist", *sys.argv[2:]]
    main()
