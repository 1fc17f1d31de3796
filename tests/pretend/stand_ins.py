"""Stand in for parts of torch and faiss that only a GPU has, with the rules that they state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from and_dist.method import faiss_search

faiss = faiss_search.load_faiss()
MOST_SELECTED = 2048
"""Candidates that faiss selects on a GPU, and cells that it probes, in builds without cuVS."""
EXACT_SEARCH, INDEX_SEARCH = "faiss.knn_gpu", "faiss.GpuIndex.search"
"""Names under which searches are counted as launches."""
LARGEST_HEAD, LARGEST_CUDNN_HEAD = 256, 128
TILE_OF_EFFICIENT = 32
"""Queries to a multiple of which the efficient operator pads its log-sum-exp."""


def efficient_attention(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Any:
    """Stand in for _scaled_dot_product_efficient_attention."""
    _check(queries.dtype != torch.float64, "Expected query to be float, half or bfloat16")
    _check_inputs(queries, keys, values)
    mean, log_z_BHG = _attend(queries, keys, values, scale)
    length = log_z_BHG.shape[2]
    padded = math.ceil(length / TILE_OF_EFFICIENT) * TILE_OF_EFFICIENT
    padded_BHG = log_z_BHG.new_full((*log_z_BHG.shape[:2], padded), torch.nan)
    padded_BHG[:, :, :length] = log_z_BHG
    return mean, padded_BHG, *_random_state(2)


def flash_attention(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Any:
    """Stand in for _scaled_dot_product_flash_attention."""
    is_short = queries.dtype in (torch.float16, torch.bfloat16)
    _check(is_short, "FlashAttention only support fp16 and bf16 data type")
    width = queries.shape[-1]
    _check(width % 8 == 0, "head_size must be a multiple of 8, this is ensured by padding!")
    _check(
        width <= LARGEST_HEAD,
        f"FlashAttention forward only supports head dimension at most {LARGEST_HEAD}",
    )
    _check_inputs(queries, keys, values)
    mean, log_z_BHG = _attend(queries, keys, values, scale)
    none, other, *rest = _random_state(5)
    return mean, log_z_BHG, none, other, 0, 0, *rest


def cudnn_attention(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Any:
    """Stand in for _scaled_dot_product_cudnn_attention."""
    is_short = queries.dtype in (torch.float16, torch.bfloat16)
    _check(is_short, "cuDNN attention supports fp16 and bf16")
    width = queries.shape[-1]
    _check(width % 8 == 0, "cuDNN attention wants a head dimension that is a multiple of 8")
    _check(width <= LARGEST_CUDNN_HEAD, "No available kernel. Aborting execution.")
    _check_inputs(queries, keys, values)
    _check(queries.is_contiguous(), "cuDNN attention wants queries without strides of 0")
    mean, log_z_BHG = _attend(queries, keys, values, scale)
    none, other, *rest = _random_state(5)
    return mean, log_z_BHG[..., None], none, other, 0, 0, *rest


def flash_attn_func(
    queries: Tensor, keys: Tensor, values: Tensor, *, softmax_scale: float, return_lse: bool
) -> Any:
    """Stand in for flash_attn.cute.flash_attn_func, whose heads come after the rows."""
    _check(return_lse, "without it there is no log-sum-exp")
    is_short = queries.dtype in (torch.float16, torch.bfloat16)
    width = queries.shape[-1]
    _check(is_short and width % 8 == 0 and 8 <= width <= 128, "not supported on SM100")
    _check_inputs(queries, keys, values)
    heads_first = (tensor.transpose(1, 2) for tensor in (queries, keys, values))
    mean, log_z_BHG = _attend(*heads_first, softmax_scale)
    return mean.transpose(1, 2), log_z_BHG


def partition_by_triton(queries: Tensor, rows: Tensor, temperature: float) -> Any:
    """Stand in for the kernel of and_dist/method/partition_triton.py."""
    is_short = rows.dtype in (torch.float16, torch.bfloat16)
    _check(is_short and queries.dtype == rows.dtype, "the kernel takes 16 bits")
    _check(rows.shape[1] in (32, 64, 128), "the kernel takes 32, 64 or 128 features")
    _check(queries.is_contiguous() and rows.is_contiguous(), "the kernel reads dense memory")
    mean_11GD, log_z_11G = _attend(
        queries[None, None], rows[None, None], rows[None, None], 1 / temperature
    )
    return log_z_11G[0, 0], mean_11GD[0, 0].float()


ATTENTION: dict[str, Callable[[Tensor, Tensor, Tensor, float], Any]] = {
    "_scaled_dot_product_efficient_attention": efficient_attention,
    "_scaled_dot_product_flash_attention": flash_attention,
    "_scaled_dot_product_cudnn_attention": cudnn_attention,
}


def _attend(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return (output, log-sum-exp) of dense attention, sums in float32."""
    logits = queries.float() @ keys.float().transpose(2, 3) * scale
    log_z = logits.logsumexp(3)
    weights = (logits - log_z[..., None]).exp()
    return (weights @ values.float()).to(queries.dtype), log_z


def _check_inputs(queries: Tensor, keys: Tensor, values: Tensor) -> None:
    """RuntimeError for what both operators refuse."""
    is_one_type = queries.dtype == keys.dtype == values.dtype
    _check(is_one_type, "query, key, and value must have the same dtype")
    _check(keys.numel() > 0, "attention over no rows")
    is_dense = all(tensor.stride(-1) == 1 for tensor in (queries, keys, values))
    _check(is_dense, "Input tensor must have contiguous last dimension")


def _check(is_right: bool, message: str) -> None:
    """Raise as torch's TORCH_CHECK does."""
    if not is_right:
        raise RuntimeError(message)


def _random_state(count: int) -> list[Tensor]:
    """Return what the operators give back about dropout, which nobody uses."""
    return [torch.empty(0, dtype=torch.int64) for _ in range(count)]


class Event:
    """Stands in for torch.cuda.Event; everything is done as soon as it is asked for."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._recorded = time.perf_counter()

    def record(self, *_: Any) -> None:
        """Take the time."""
        self._recorded = time.perf_counter()

    def elapsed_time(self, later: Event) -> float:
        """Return the milliseconds between two events."""
        return 1e3 * (later._recorded - self._recorded)

    def synchronize(self) -> None:
        """Do nothing: an event is waited for on purpose, and is no hidden wait."""


class Generator(torch.Generator):
    """Stands in for torch.Generator; one of a GPU draws on the CPU."""

    wanted: torch.device

    def __new__(cls, device: Any = "cpu") -> Generator:
        """Make a generator of the CPU, which says that it is one of the asked device."""
        wanted = torch.device(device)
        made = super().__new__(cls, "cpu" if wanted.type == "cuda" else wanted)
        made.wanted = torch.device("cuda", 0) if wanted.type == "cuda" else wanted
        return made

    @property
    def device(self) -> torch.device:
        """Return the device that was asked for."""
        return self.wanted


def current_stream(*_: Any) -> SimpleNamespace:
    """Stand in for torch.cuda.current_stream; DALI's pipelines of CPUs take no stream."""
    return SimpleNamespace(cuda_stream=None, is_capturing=lambda: False)


def get_device_properties(*_: Any) -> SimpleNamespace:
    """Stand in for torch.cuda.get_device_properties, as if of an H100."""
    return SimpleNamespace(
        name="pretend H100", total_memory=85 * 10**9, multi_processor_count=132, major=9, minor=0
    )


class GpuResources:
    """Stands in for faiss.StandardGpuResources."""

    made: ClassVar[list[GpuResources]] = []
    """All resources that were made since a test emptied the list."""

    def __init__(self) -> None:
        self.temporary_bytes, self.pinned_bytes = 1536 * 2**20, 256 * 2**20
        self.made.append(self)

    def setTempMemory(self, size: int) -> None:
        """Check the type as SWIG does, and note the size."""
        assert isinstance(size, int)
        self.temporary_bytes = size

    def setPinnedMemory(self, size: int) -> None:
        """Check the type as SWIG does, and note the size."""
        assert isinstance(size, int)
        self.pinned_bytes = size


class GpuIndex:
    """Stands in for an index on a GPU, as faiss.contrib.torch_utils serves it."""

    def __init__(self, index: Any) -> None:
        self.on_cpu = index

    def train(self, rows_SD: Tensor) -> None:
        """Train on rows of the GPU."""
        self.on_cpu.train(_on_gpu(rows_SD))

    def add(self, rows_SD: Tensor) -> None:
        """Add rows of the GPU."""
        self.on_cpu.add(_on_gpu(rows_SD))

    def search(self, queries_QD: Tensor, count: int) -> tuple[Tensor, ...]:
        """Search for queries of the GPU, within its limits of candidates and of cells."""
        inner_QD = _on_gpu(queries_QD)
        queries_QD.gpu.launches[INDEX_SEARCH] += 1
        _check_count(count)
        probes = getattr(self.on_cpu, "nprobe", 1)
        _check(
            probes <= MOST_SELECTED,
            f"GPU IVF index only supports nprobe selection up to {MOST_SELECTED} "
            f"(requested {probes})",
        )
        return tuple(queries_QD.gpu.hold(found) for found in self.on_cpu.search(inner_QD, count))


class GpuParameterSpace(faiss.ParameterSpace):
    """Stands in for faiss.GpuParameterSpace."""

    def set_index_parameter(self, index: Any, name: str, value: float) -> None:
        """Set a parameter of the index that stands in."""
        super().set_index_parameter(getattr(index, "on_cpu", index), name, value)


def index_cpu_to_gpu(resources: GpuResources, device: int, index: Any) -> GpuIndex:
    """Stand in for faiss.index_cpu_to_gpu; RuntimeError for what it cannot take to a GPU."""
    assert isinstance(resources, GpuResources)
    assert isinstance(device, int)
    is_known = isinstance(index, faiss.IndexFlat) or faiss.try_extract_index_ivf(index) is not None
    _check(is_known, "This index type is not implemented on GPU.")
    return GpuIndex(index)


def knn_gpu(
    resources: GpuResources,
    queries_QD: Tensor,
    rows_SD: Tensor,
    count: int,
    metric: int,
    device: int = -1,
) -> tuple[Tensor, ...]:
    """Stand in for faiss.knn_gpu, which takes the current GPU unless it is told which."""
    assert isinstance(resources, GpuResources)
    assert device == queries_QD.device.index
    _check_count(count)
    found = faiss.knn(_on_gpu(queries_QD), _on_gpu(rows_SD), count, metric=metric)
    queries_QD.gpu.launches[EXACT_SEARCH] += 1
    return tuple(queries_QD.gpu.hold(tensor) for tensor in found)


def _check_count(count: int) -> None:
    """RuntimeError where faiss cannot select so many."""
    _check(
        0 < count <= MOST_SELECTED,
        f"GPU index only supports min/max-K selection up to {MOST_SELECTED} (requested {count})",
    )


def _on_gpu(tensor: Tensor) -> Tensor:
    """Return a device tensor's values; faiss reads its memory, so it has to be dense float32."""
    assert tensor.is_cuda, "faiss reads memory of a GPU and was given a tensor of the CPU"
    assert tensor.is_contiguous()
    assert tensor.dtype == torch.float32
    inner: Tensor = tensor.inner
    return inner
