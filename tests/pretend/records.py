"""Count what a host asks of a device, by the line of this project that asks for it."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[2]
FOLDERS = ("and_dist", "benchmarks", "tests")
MACHINERY = {
    str(Path(__file__).with_name(f"{name}.py"))
    for name in ("records", "tensors", "stand_ins", "device", "live_memory")
}
"""Files whose frames stand between the line that asks and the counting."""
WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
}
"""Operators whose value or shape the host needs before it can go on."""
LAUNCH_NOTHING = {"_unsafe_view", "device", "empty", "empty_like", "empty_strided", "new_empty"}
"""Operators that launch no kernel, besides those whose schema says that they make a view."""
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}


class Record:
    """Counts launches, waits and copies; each key names an operator and a line."""

    def __init__(self) -> None:
        self.forget_counts()

    def forget_counts(self) -> None:
        """Begin to count anew."""
        self.launches: Counter[str] = Counter()
        """Operators by name alone; views and empty memory are not among them."""
        self.waits: Counter[str] = Counter()
        self.blocking_copies: Counter[str] = Counter()
        """Copies between host and device after which torch synchronises the stream."""
        self.threads: set[str] = set()
        """Names of the threads that have used the device."""
        self.background_copies: Counter[str] = Counter()

    def note_launch(self, func: OpOverload) -> None:
        """Count an operator unless it only describes memory."""
        self.threads.add(threading.current_thread().name)
        name = name_of(func)
        if not (func.is_view or name in LAUNCH_NOTHING):
            self.launches[name] += 1

    def note_wait(self, name: str) -> None:
        """Count one wait of the host for the device."""
        self.waits[f"{name} {calling_line()}"] += 1

    def note_copy(self, name: str, is_blocking: bool) -> None:
        """Count one copy between host and device."""
        self.threads.add(threading.current_thread().name)
        copies = self.blocking_copies if is_blocking else self.background_copies
        copies[f"{name} {calling_line()}"] += 1

    def host_waits(self) -> Counter[str]:
        """Return everything that makes the host wait, copies included."""
        return self.waits + self.blocking_copies


def calling_line() -> str:
    """Return "and_dist/training/meters.py:58", the nearest frame that belongs to this project."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name not in MACHINERY and name.startswith(str(ROOT)):
            path = Path(name).relative_to(ROOT)
            if path.parts[0] in FOLDERS:
                return f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def tensors_in(values: Any) -> list[Tensor]:
    """Return every tensor in nested arguments or results."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def name_of(func: OpOverload) -> str:
    """Return an operator's name without its namespace and overload."""
    return str(func.overloadpacket.__name__)


def makes_the_host_wait(name: str, args: Sequence[Any]) -> bool:
    """Return whether an operator on CUDA tensors makes the host wait for their values."""
    if name in WAITS:
        return True
    return name in INDEXING and _has_mask(args[1]) and not _is_masked_fill(name, args)


def _has_mask(indices: Iterable[Tensor | None]) -> bool:
    """Return whether an index is a mask, which becomes row numbers by way of nonzero()."""
    return any(index.dtype in (torch.bool, torch.uint8) for index in tensors_in(list(indices)))


def _is_masked_fill(name: str, args: Sequence[Any]) -> bool:
    """Return whether torch fills by the mask itself: one mask, one value, no accumulation."""
    if not name.endswith(("put", "put_")) or any(args[3:4]):
        return False
    return len(tensors_in(args[1])) == 1 and args[2].numel() == 1
