"""Make tensors that say cuda:0, compute on the CPU, and refuse what CUDA refuses.

torch itself sees a DeviceTensor on the CPU, so that autograd's engine runs it without a driver;
Python code that asks for its device is told cuda:0. All operators pass through PretendGpu.run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from tests.pretend import stand_ins
from tests.pretend.live_memory import LiveMemory
from tests.pretend.records import INDEXING, Record, makes_the_host_wait, name_of, tensors_in

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
TF32_HALF, TF32_MASK = 0x1000, ~0x1FFF
"""TF32 keeps 10 of the 23 bits of a float32's fraction."""

NOT_REPEATABLE = {
    "_adaptive_avg_pool2d_backward",
    "adaptive_max_pool2d_backward",
    "fractional_max_pool2d_backward",
    "max_unpool2d",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "reflection_pad2d_backward",
    "nll_loss2d_forward",
    "_ctc_loss_backward",
    "put_",
    "histc",
    "median",
    "grid_sampler_2d_backward",
    "scatter_reduce",
}
"""Operators of CUDA that have no kernel which gives the same bits each time."""


class PretendGpu(Record):
    """Runs operators of device tensors by the rules of a GPU, and counts what the host does.

    `rounds_to_tf32` rounds what convolutions multiply, as cuDNN does on a GPU while
    torch.backends.cudnn.allow_tf32 is on; without it losses equal those of the CPU closely.
    """

    def __init__(self, rounds_to_tf32: bool = False) -> None:
        super().__init__()
        self.rounds_to_tf32 = rounds_to_tf32
        self.memory = LiveMemory()

    def hold(self, inner: Tensor) -> DeviceTensor:
        """Return the tensor as one of this GPU's; both share their memory."""
        self.memory.follow(inner)
        return DeviceTensor(inner, self)

    def run(self, func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run one operator on the wrapped tensors, and wrap what it makes."""
        name, given = name_of(func), tensors_in((args, kwargs))
        is_ours = [isinstance(tensor, DeviceTensor) for tensor in given]
        wanted = kwargs.get("device")
        is_on_gpu = any(is_ours) or (wanted is not None and torch.device(wanted).type == "cuda")
        if any(is_ours):
            self.note_launch(func)
            _refuse_kernels_of_cpus(name)
            _refuse_what_does_not_repeat(name, args)
            if makes_the_host_wait(name, args):
                self.note_wait(name)
            if not all(is_ours):
                self._join_devices(name, args, kwargs)
        elif is_on_gpu and name == "_to_copy":
            self.note_copy(name, not kwargs.get("non_blocking"))
        result = self._compute(func, name, args, _on_the_cpu(kwargs))
        if not is_on_gpu or name == "_local_scalar_dense":
            return result
        known = {id(_unwrap(tensor)): tensor for tensor in given}

        def wrap(made: Any) -> Any:
            if not isinstance(made, Tensor):
                return made
            return known.get(id(made)) if id(made) in known else self.hold(made)

        return tree_map(wrap, result)

    def _join_devices(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Count the copy where CUDA takes tensors of both devices; RuntimeError where not."""
        foreign = [x for x in tensors_in((args, kwargs)) if not isinstance(x, DeviceTensor)]
        if name == "copy_":
            self.note_copy(name, not (kwargs.get("non_blocking") or any(args[2:3])))
        elif all(tensor.dim() == 0 for tensor in foreign):
            return  # a scalar of the CPU travels with the launch
        elif (
            name in INDEXING and isinstance(args[0], DeviceTensor) and _has_values_of_its_own(args)
        ):
            self.note_copy(name, is_blocking=True)  # row numbers of the CPU follow the tensor
        elif name in INDEXING and not isinstance(args[0], DeviceTensor):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor "
                f"(cpu) ({name})"
            )
        else:
            shapes = [tuple(tensor.shape) for tensor in foreign]
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"cuda:0 and cpu! ({name}, of the CPU: {shapes})"
            )

    def _compute(
        self, func: OpOverload, name: str, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Call the CPU's operator, or what stands in for one that it lacks."""
        on_gpu = any(isinstance(tensor, DeviceTensor) for tensor in tensors_in(args))
        args, kwargs = tree_map(_unwrap, (tuple(args), kwargs))
        if on_gpu and name in stand_ins.ATTENTION:
            return stand_ins.ATTENTION[name](*args[:3], kwargs["scale"])
        if on_gpu and name == "partition_by_triton":
            return stand_ins.partition_by_triton(*args)
        if on_gpu and name.startswith("convolution") and self._uses_tf32():
            args = tree_map(_round_to_tf32, args)
        return func(*args, **kwargs)

    def _uses_tf32(self) -> bool:
        """Return whether this GPU rounds and torch allows it to."""
        return self.rounds_to_tf32 and torch.backends.cudnn.allow_tf32


class DeviceTensor(torch.Tensor):
    """A tensor of the pretend GPU around a tensor of the CPU."""

    inner: Tensor
    gpu: PretendGpu

    @staticmethod
    def __new__(cls, inner: Tensor, _: PretendGpu) -> DeviceTensor:
        made: DeviceTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=inner.device,
        )
        return made

    def __init__(self, inner: Tensor, gpu: PretendGpu) -> None:
        self.inner = inner
        self.gpu = gpu

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.inner!r})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Say what a tensor of a GPU says; what computes goes on to __torch_dispatch__."""
        kwargs = kwargs or {}
        if func in SAYS:
            return SAYS[func]
        if func in (Tensor.numpy, Tensor.__array__):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
                "tensor to host memory first."
            )
        if func is Tensor.pin_memory:
            raise RuntimeError(
                "cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned"
            )
        if func is Tensor.tolist:
            args[0].gpu.note_wait("tolist")
            return args[0].inner.tolist()
        with torch._C.DisableTorchFunctionSubclass():
            if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
                return _move(func, args, kwargs)
            if func is Tensor.new_tensor:
                return torch.tensor(args[1], device=CUDA, **kwargs)
            if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu":
                # new_zeros, empty_like and their kind: a tensor of the CPU, in the shape of ours.
                args, kwargs = tree_map(_unwrap, (tuple(args), _on_the_cpu(kwargs)))
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(
        cls,
        func: OpOverload,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operator where no mode is active: in other threads."""
        ours = next(x for x in tensors_in((args, kwargs)) if isinstance(x, DeviceTensor))
        return ours.gpu.run(func, args, kwargs or {})


SAYS: dict[Callable[..., Any], Any] = {
    Tensor.device.__get__: CUDA,
    Tensor.is_cuda.__get__: True,
    Tensor.is_cpu.__get__: False,
}


class _Leave(torch.autograd.Function):
    """Copies a device tensor to the CPU; its gradient comes back to the device."""

    @staticmethod
    def forward(ctx: Any, tensor: DeviceTensor) -> Tensor:
        ctx.gpu = tensor.gpu
        return tensor.inner.detach().clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        held: Tensor = ctx.gpu.hold(gradients[0])
        return held


def _move(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Do the work of Tensor.to, cpu and cuda for a device tensor."""
    tensor: DeviceTensor = args[0]
    if func is Tensor.cuda:
        return tensor
    device, dtype, is_background, layout = CPU, None, False, None
    if func is Tensor.to:
        without_copy = {key: value for key, value in kwargs.items() if key != "copy"}
        device, dtype, is_background, layout = torch._C._nn._parse_to(*args[1:], **without_copy)
    if device is not None and device.type == "cpu":
        tensor.gpu.note_copy(func.__name__, not is_background)
        left: Tensor = _Leave.apply(tensor)
        return left.to(dtype) if dtype else left
    changes: dict[str, Any] = {"copy": True} if kwargs.get("copy") else {}
    if layout is not None:
        changes["memory_format"] = layout
    return Tensor.to(tensor, dtype or tensor.dtype, **changes)


class DeviceOperators(TorchDispatchMode):
    """Sends the GPU what only names it, such as zeros(..., device="cuda")."""

    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self.gpu.run(func, args, kwargs or {})


class DeviceFunctions(TorchFunctionMode):
    """Answers functions that would ask the driver before any operator is seen."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        kwargs.pop("pin_memory", None)  # which takes a driver, and changes no value
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = torch.device(kwargs.pop("device"))
            made = func(*args, **kwargs)
            return made.to(CUDA) if device.type == "cuda" else made
        if func is Tensor.pin_memory and not isinstance(args[0], DeviceTensor):
            return args[0]
        if func is Tensor.cuda:
            return args[0].to(CUDA)
        if func is Tensor.to:  # "cuda" without a number asks which device is the current one
            args = [CUDA if _is_unnumbered(value) else value for value in args]
        return func(*args, **kwargs)


def enter_modes(held: ExitStack, gpu: PretendGpu) -> None:
    """Send this thread's operators and functions to the pretend GPU until `held` closes."""
    held.enter_context(DeviceOperators(gpu))
    held.enter_context(DeviceFunctions())


def _is_unnumbered(value: Any) -> bool:
    """Return whether an argument is the device "cuda" without a number."""
    return isinstance(value, (str, torch.device)) and str(value) == "cuda"


def _refuse_kernels_of_cpus(name: str) -> None:
    """RuntimeError for an operator that has no kernel for CUDA."""
    if name.endswith("_for_cpu") or name.startswith(("mkldnn_", "_mkldnn")):
        raise NotImplementedError(
            f"Could not run 'aten::{name}' with arguments from the 'CUDA' backend."
        )


def _refuse_what_does_not_repeat(name: str, args: Sequence[Any]) -> None:
    """RuntimeError where torch has no kernel that repeats to the bit and was told to use no other.

    The names are those of torch.use_deterministic_algorithms' list.
    """
    does_not = name in NOT_REPEATABLE or (name == "bincount" and any(args[1:2]))
    if torch.are_deterministic_algorithms_enabled() and does_not:
        raise RuntimeError(f"{name} does not have a deterministic implementation")


def _has_values_of_its_own(args: Sequence[Any]) -> bool:
    """Return whether what index_put writes, if anything, lies on the device or is a scalar."""
    values = args[2] if len(args) > 2 else None
    return not isinstance(values, Tensor) or isinstance(values, DeviceTensor) or values.dim() == 0


def _on_the_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an operator, unpinned, with the CPU in place of the GPU."""
    kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    device = kwargs.get("device")
    is_cuda = device is not None and torch.device(device).type == "cuda"
    return {**kwargs, "device": CPU} if is_cuda else kwargs


def _unwrap(value: Any) -> Any:
    """Return the CPU's tensor within a device tensor, and any other value itself."""
    return value.inner if isinstance(value, DeviceTensor) else value


def _round_to_tf32(value: Any) -> Any:
    """Round a float32 tensor as tensor cores read it; anything else stays as it is."""
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return value
    dense = value.detach().clone(memory_format=torch.preserve_format)
    return ((dense.view(torch.int32) + TF32_HALF) & TF32_MASK).view(torch.float32)
