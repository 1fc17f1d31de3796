"""Pretend that there is a GPU, so that whole runs go the way of one with real numbers.

    with pretend_gpu() as gpu:
        run_training(config_with_run_device_cuda, guard)
    gpu.host_waits()        what the host waited for, by operator and line

Tests of devices that mix, of .numpy() without .cpu(), of shapes and types that fused operators
refuse and of faiss's calls for GPUs fail as they would on one. What it cannot show: kernels,
streams, memory, speed, NCCL, and DALI's mixed decoding.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from and_dist.data import pipeline
from and_dist.method import faiss_search
from tests.pretend import stand_ins
from tests.pretend.tensors import PretendGpu, enter_modes

ON_CUDA: dict[str, Any] = {
    "_lazy_init": None,
    "is_available": True,
    "is_bf16_supported": True,
    "device_count": 1,
    "set_device": None,
    "synchronize": None,
    "manual_seed": None,
    "manual_seed_all": None,
    "max_memory_allocated": 0,
    "memory_allocated": 0,
    "mem_get_info": (80 * 10**9, 85 * 10**9),
    "reset_peak_memory_stats": None,
    "empty_cache": None,
    "get_device_name": "pretend H100",
    "is_initialized": True,
}
"""Functions of torch.cuda that give one answer."""

TAKE_A_CONTEXT = ("_lazy_init", "current_stream", "synchronize", "empty_cache", "mem_get_info")
"""Functions of torch.cuda with which a thread begins to use a GPU."""


@contextmanager
def pretend_gpu(rounds_to_tf32: bool = False) -> Iterator[PretendGpu]:
    """Give this thread one pretend GPU; everything that is patched is put back at the end."""
    gpu = PretendGpu(rounds_to_tf32)
    with ExitStack() as held:
        _patch_cuda(held, gpu)
        _patch_faiss(held)
        _patch_distributed(held)
        _patch_images(held, gpu)
        _replace_parameters_when_moved(held)
        enter_modes(held, gpu)
        yield gpu


def _patch_cuda(held: ExitStack, gpu: PretendGpu) -> None:
    """Let torch.cuda speak of one GPU, and note the threads that take a context there."""
    functions = {name: _always(answer) for name, answer in ON_CUDA.items()}
    functions["current_stream"] = stand_ins.current_stream
    for name in TAKE_A_CONTEXT:
        functions[name] = partial(_call_noted, gpu, functions[name])
    for name in ("Event", "get_device_properties"):
        functions[name] = getattr(stand_ins, name)
    for name, function in functions.items():
        held.enter_context(patch.object(torch.cuda, name, function))
    autocast = torch.autocast

    def autocast_of_cpu(device: str, *args: Any, **kwargs: Any) -> torch.autocast:
        return autocast("cpu" if device == "cuda" else device, *args, **kwargs)

    held.enter_context(patch.object(torch, "autocast", autocast_of_cpu))
    held.enter_context(patch.object(torch, "Generator", stand_ins.Generator))
    held.enter_context(patch.object(torch.accelerator, "current_stream", stand_ins.current_stream))
    # Networks attend by operators that a GPU has too, and not by the one that is made for CPUs.
    held.enter_context(sdpa_kernel(SDPBackend.MATH))


def _patch_faiss(held: ExitStack) -> None:
    """Let faiss have its functions for GPUs, which a machine without one cannot call."""
    faiss_search._make_gpu_resources.cache_clear()
    held.callback(faiss_search._make_gpu_resources.cache_clear)
    named = {
        "StandardGpuResources": stand_ins.GpuResources,
        "GpuParameterSpace": stand_ins.GpuParameterSpace,
        "index_cpu_to_gpu": stand_ins.index_cpu_to_gpu,
        "knn_gpu": stand_ins.knn_gpu,
    }
    for name, stands_in in named.items():
        held.enter_context(patch.object(stand_ins.faiss, name, stands_in, create=True))


def _patch_distributed(held: ExitStack) -> None:
    """Take gloo for NCCL."""
    join = dist.init_process_group

    def join_by_gloo(_: str, *args: Any, **kwargs: Any) -> None:
        join("gloo", *args, **kwargs)

    held.enter_context(patch.object(dist, "init_process_group", join_by_gloo))


def _patch_images(held: ExitStack, gpu: PretendGpu) -> None:
    """Let DALI decode on the CPU, and give out images of the GPU."""
    build, outputs_of = pipeline._build, pipeline.ImagePipeline._outputs

    def build_on_cpu(spec: pipeline.GraphSpec, next_feeds: Any) -> Any:
        return build(replace(spec, device=torch.device("cpu")), next_feeds)

    def outputs_on_device(self: pipeline.ImagePipeline) -> Iterator[list[Tensor]]:
        for outputs in outputs_of(self):
            is_ours = self.spec.device.type == "cuda"
            yield [gpu.hold(output.clone()) for output in outputs] if is_ours else outputs

    held.enter_context(patch.object(pipeline, "_build", build_on_cpu))
    held.enter_context(patch.object(pipeline.ImagePipeline, "_outputs", outputs_on_device))


def _replace_parameters_when_moved(held: ExitStack) -> None:
    """Let module.to() put new parameters in place; device tensors cannot become data of old."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    held.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)


def _call_noted(gpu: PretendGpu, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function and note the thread that calls it."""
    gpu.threads.add(threading.current_thread().name)
    return function(*args, **kwargs)


def _always(answer: Any) -> Any:
    """Return a function that takes anything and gives one answer."""

    def give(*_: Any, **__: Any) -> Any:
        return answer

    return give
