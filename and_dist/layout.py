"""Layout: which rank torchrun made this process. The only reader of RANK & co.; no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """A lone process, started without torchrun, is a world of one."""

    is_alone: bool = True
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def read_layout(environ: Mapping[str, str] = os.environ) -> Layout:
    """ValueError for a layout that cannot be."""

    def number(name: str, default: int) -> int:
        text = environ.get(name, str(default))
        if not text.isdecimal():
            raise ValueError(f"{name}={text!r} in the environment is not a whole number")
        return int(text)

    size = number("WORLD_SIZE", 1)
    if size < 1:
        raise ValueError("WORLD_SIZE=0 in the environment: a world needs at least one rank")
    layout = Layout(
        "WORLD_SIZE" not in environ,
        number("RANK", 0),
        size,
        number("LOCAL_RANK", 0),
        number("LOCAL_WORLD_SIZE", 1),
    )
    if layout.rank >= size:
        raise ValueError(f"RANK={layout.rank} in the environment is not below WORLD_SIZE={size}")
    return layout


def names_first_rank(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process speaks for all, however broken the rest of the layout is."""
    return environ.get("RANK", "0") == "0"


class SharedFailure(RuntimeError):
    """What all ranks raise together, so that the first can speak for all."""
