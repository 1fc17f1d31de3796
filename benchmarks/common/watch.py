"""Record the tensors that torch makes, with their lines of code, and the bytes of collectives."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NOT_THE_CALLER = ("/torch/", __file__)


class Made(NamedTuple):
    """Describe a tensor with memory of its own."""

    num_bytes: int
    num_elements: int
    shape: tuple[int, ...]
    operator: str
    where: str
    """File and line of the code that called torch."""

    def __str__(self) -> str:
        """Return a description for error messages."""
        return f"{self.operator} {list(self.shape)} in {self.where}, {self.num_bytes:,} bytes"


class Watch(TorchDispatchMode):
    """Record the results of operators. Memory inside an operator is not seen; VmHWM includes it.

    No tensor is kept. Views and tensors that are written in place are not counted.
    """

    def __init__(self, world_size: int) -> None:
        """Start with no tensors and no bytes."""
        super().__init__()
        self.made: list[Made] = []
        self.received: Counter[str] = Counter()
        """Bytes that come from other ranks, by operator; for an all-reduce those of a ring."""
        self._world_size = world_size

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and record the tensors that are new in its result."""
        known = {_address(tensor) for tensor in _tensors_in((args, kwargs))}
        result = operator(*args, **(kwargs or {}))
        name = str(operator).removesuffix(".default")
        if operator.namespace == "c10d":
            self.received[name] += self._bytes_from_others(name, _tensors_in(args))
            return result
        for tensor in _tensors_in(result):
            if _address(tensor) not in known and tensor.numel():
                shape, size = tuple(tensor.shape), tensor.untyped_storage().nbytes()
                self.made.append(Made(size, size // tensor.itemsize, shape, name, _caller()))
        return result

    def largest(self) -> Made:
        """Return the largest tensor."""
        return max(self.made)

    def bytes_made(self) -> int:
        """Return the sum of all tensors' bytes."""
        return sum(made.num_bytes for made in self.made)

    def _bytes_from_others(self, name: str, tensors: list[Tensor]) -> int:
        first = tensors[0].nbytes
        share = (self._world_size - 1) / self._world_size
        match name:
            case "c10d._allgather_base_" | "c10d.alltoall_base_":
                return round(share * first)  # the first tensor is the received one
            case "c10d.allreduce_":
                return round(2 * share * sum(tensor.nbytes for tensor in tensors))
            case "c10d.broadcast_" | "c10d.gather_":
                return first
        raise AssertionError(f"the bytes that {name} receives are not known")


def _tensors_in(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _caller() -> str:
    frame = sys._getframe(1)
    while frame.f_back and any(part in frame.f_code.co_filename for part in NOT_THE_CALLER):
        frame = frame.f_back
    return f"{'/'.join(frame.f_code.co_filename.split('/')[-3:])}:{frame.f_lineno}"
