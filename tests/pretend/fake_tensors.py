"""Make tensors of any size that say cuda and hold no values, and watch what they launch.

torch's FakeTensorMode knows shape, type and device of every operator's result on CUDA. So a step at
full size runs in a second, and code that looks at a value fails: it would make the host wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pretend import stand_ins
from tests.pretend.records import Record, makes_the_host_wait, name_of, tensors_in


class Watch(TorchDispatchMode):
    """Records the launches, waits and copies of fake CUDA tensors while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.record = Record()

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        # torch 2.15 has no fake kernel of the fused optimiser, which writes in place.
        result = None if name == "_fused_sgd_" else func(*args, **kwargs)
        devices = {tensor.device.type for tensor in tensors_in((args, kwargs, result))}
        if "cuda" not in devices:
            return result
        self.record.note_launch(func)
        if makes_the_host_wait(name, args):
            self.record.note_wait(name)
        if "cpu" in devices and name in ("_to_copy", "copy_"):
            is_background = kwargs.get("non_blocking") or any(args[2:3])
            self.record.note_copy(name, not is_background)
        return result


class _UnpinnedMemory(TorchFunctionMode):
    """Leaves pin_memory away, which takes a driver and changes no shape."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        kwargs.pop("pin_memory", None)
        return func(*args, **kwargs)


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Make fake tensors; everything that is patched is put back at the end."""
    with ExitStack() as held:
        for name in ("Event", "get_device_properties"):
            held.enter_context(patch.object(torch.cuda, name, getattr(stand_ins, name)))
        held.enter_context(patch.object(torch.cuda, "is_bf16_supported", lambda *_, **__: True))
        # Without a GPU torch 2.15 turns autocast for CUDA off, with a warning.
        held.enter_context(
            patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        )
        held.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        held.enter_context(_UnpinnedMemory())
        yield


def backward_without_an_engine(parameters: Sequence[Tensor]) -> Callable[..., None]:
    """Return what stands in for loss.backward(): gradients of the right shapes, and no pass.

    autograd's engine starts a thread for every device that it meets, and finds no GPU.
    """

    def backward(_: Tensor, *__: Any, **___: Any) -> None:
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)

    return backward
