"""Anchor Neighbourhood Discovery with a memory bank sharded over ranks.

The names below are what other programs may rely on. They are loaded when they are first used, so
that `import and_dist` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from and_dist.api import load, load_config, load_encoder, train
    from and_dist.distributed.world import open_world
    from and_dist.method.curriculum import num_anchors
    from and_dist.method.discovery import discover
    from and_dist.method.loss import neighbourhood_nll
    from and_dist.method.memory_bank import MemoryBank, shard_range
    from and_dist.method.partition import log_partition
    from and_dist.method.partition_merge import merge

__version__ = "0.1.0"
__all__ = [
    "MemoryBank",
    "discover",
    "load",
    "load_config",
    "load_encoder",
    "log_partition",
    "merge",
    "neighbourhood_nll",
    "num_anchors",
    "open_world",
    "shard_range",
    "train",
]
PLACES = {
    "MemoryBank": "and_dist.method.memory_bank",
    "discover": "and_dist.method.discovery",
    "load": "and_dist.api",
    "load_config": "and_dist.api",
    "load_encoder": "and_dist.api",
    "log_partition": "and_dist.method.partition",
    "merge": "and_dist.method.partition_merge",
    "neighbourhood_nll": "and_dist.method.loss",
    "num_anchors": "and_dist.method.curriculum",
    "open_world": "and_dist.distributed.world",
    "shard_range": "and_dist.method.memory_bank",
    "train": "and_dist.api",
}
"""Public names -> the modules that define them."""


def __getattr__(name: str) -> Any:
    """Return a public name, which is loaded now."""
    if name not in PLACES:
        raise AttributeError(f"and_dist has no {name!r}; it has: {', '.join(__all__)}")
    found = getattr(import_module(PLACES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return all names, loaded or not."""
    return sorted({*globals(), *__all__})
