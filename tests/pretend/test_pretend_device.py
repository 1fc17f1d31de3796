"""Prove that the pretend GPU refuses and counts, so that a test that runs on it can fail."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from and_dist.data import pipeline
from tests.pretend.device import pretend_gpu
from tests.pretend.stand_ins import GpuIndex, faiss
from tests.pretend.tensors import CUDA, DeviceTensor, PretendGpu

FORMAT = "{:.3f}".format
THIS_FILE = f"tests/pretend/{Path(__file__).name}"
efficient_attention = torch.ops.aten._scaled_dot_product_efficient_attention
flash_attention = torch.ops.aten._scaled_dot_product_flash_attention
flash_attention_for_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Pair(NamedTuple):
    """Hold a tensor of each device."""

    on_cpu: Tensor
    on_gpu: Tensor


@pytest.fixture
def gpu() -> Iterator[PretendGpu]:
    with pretend_gpu() as gpu:
        yield gpu


def unit(num_rows: int, dim: int = 128, seed: int = 0) -> Tensor:
    """Return rows of unit norm on the CPU."""
    random = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(num_rows, dim, generator=random), dim=1)


@pytest.mark.usefixtures("gpu")
def test_tensors_say_that_they_lie_on_the_gpu() -> None:
    made = [
        torch.zeros(3, device="cuda"),
        torch.tensor([1.0, 2.0], device=CUDA),
        torch.ones(3).to("cuda") + 1,
        torch.ones(3).cuda()[1:],
        torch.empty(3).to(CUDA).new_ones(2),
    ]
    for tensor in made:
        assert (tensor.device, tensor.is_cuda, tensor.is_cpu) == (CUDA, True, False)
    assert not made[0].cpu().is_cuda
    assert not torch.empty_like(made[0], device="cpu").is_cuda


def test_values_and_gradients_are_those_of_the_cpu() -> None:
    def gradients(device: str) -> list[Tensor]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
        network.to(device)
        network(torch.randn(5, 3, 8, 8).to(device)).square().mean().backward()
        return [parameter.grad.cpu() for parameter in network.parameters()]

    expected = gradients("cpu")
    with pretend_gpu():
        found = gradients("cuda")
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    "mix",
    [
        lambda pair: pair.on_gpu + pair.on_cpu,
        lambda pair: pair.on_cpu + pair.on_gpu,
        lambda pair: pair.on_gpu @ pair.on_cpu.T,
        lambda pair: torch.cat([pair.on_gpu, pair.on_cpu]),
        lambda pair: torch.where(pair.on_cpu > 0, pair.on_gpu, 0),
        lambda pair: pair.on_gpu.index_add_(0, torch.tensor([1], device=CUDA), pair.on_cpu[:1]),
        lambda pair: pair.on_cpu + pair.on_gpu.sum(),
        lambda pair: pair.on_cpu[torch.tensor([0], device=CUDA)],
        lambda pair: pair.on_gpu.index_put_((torch.tensor([0], device=CUDA),), pair.on_cpu[0]),
        lambda pair: nn.Linear(4, 2)(pair.on_gpu),
    ],
)
def test_devices_do_not_mix(mix: Callable[[Pair], Tensor]) -> None:
    with pytest.raises(RuntimeError, match=r"same device"):
        mix(Pair(torch.ones(3, 4), torch.ones(3, 4, device=CUDA)))


@pytest.mark.usefixtures("gpu")
def test_a_scalar_of_the_cpu_may_join() -> None:
    assert (torch.ones(3, device=CUDA) * torch.tensor(2.0)).is_cuda


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("convert", [Tensor.numpy, np.asarray])
def test_a_device_tensor_is_no_array(convert: Callable[[Tensor], object]) -> None:
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu\(\)"):
        convert(torch.ones(3, device=CUDA))


@pytest.mark.usefixtures("gpu")
def test_memory_of_the_device_cannot_be_pinned() -> None:
    with pytest.raises(RuntimeError, match="cannot pin"):
        torch.ones(3, device=CUDA).pin_memory()


def attend(operator: Callable[..., tuple[Tensor, ...]], rows_SD: Tensor) -> tuple[Tensor, ...]:
    """Call a fused operator for 3 queries, as and_dist.method.partition calls it."""
    queries_11GD, rows_11SD = rows_SD[None, None, :3], rows_SD[None, None]
    if operator is efficient_attention:
        return operator(queries_11GD, rows_11SD, rows_11SD, None, True, 0.0, False, scale=10.0)
    return operator(queries_11GD, rows_11SD, rows_11SD, 0.0, False, False, scale=10.0)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("operator", "dtype", "dim", "message"),
    [
        (flash_attention, torch.float32, 128, "only support fp16 and bf16"),
        (flash_attention, torch.bfloat16, 100, "multiple of 8"),
        (flash_attention, torch.bfloat16, 512, "at most 256"),
        (efficient_attention, torch.float64, 128, "float, half or bfloat16"),
    ],
)
def test_fused_operators_refuse_what_their_kernels_refuse(
    operator: Callable[..., tuple[Tensor, ...]], dtype: torch.dtype, dim: int, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        attend(operator, unit(7, dim).to(dtype).to(CUDA))


@pytest.mark.usefixtures("gpu")
def test_a_kernel_of_cpus_is_refused() -> None:
    rows_11SD = unit(7)[None, None].to(CUDA)
    with pytest.raises(NotImplementedError, match="'CUDA' backend"):
        flash_attention_for_cpu(rows_11SD, rows_11SD, rows_11SD)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("operator", "dtype", "length"),
    [(efficient_attention, torch.float32, 32), (flash_attention, torch.bfloat16, 3)],
)
def test_fused_operators_equal_the_dense_form(
    operator: Callable[..., tuple[Tensor, ...]], dtype: torch.dtype, length: int
) -> None:
    """One pads its log-sum-exp to 32 queries; code that forgets to cut it meets NaN."""
    rows_SD = unit(7).to(dtype)
    mean_11GD, log_z_11G, *_ = (found.cpu() for found in attend(operator, rows_SD.to(CUDA))[:2])
    logits_GS = 10 * rows_SD[:3].float() @ rows_SD.float().T
    assert log_z_11G.shape == (1, 1, length)
    assert log_z_11G[0, 0, 3:].isnan().all()
    torch.testing.assert_close(log_z_11G[0, 0, :3], logits_GS.logsumexp(1))
    expected_GD = (logits_GS.softmax(1) @ rows_SD.float()).to(dtype)
    torch.testing.assert_close(mean_11GD[0, 0], expected_GD)


@pytest.mark.parametrize(
    "look",
    [
        Tensor.item,
        Tensor.tolist,
        bool,
        int,
        Tensor.nonzero,
        Tensor.unique,
        lambda tensor_X: tensor_X[tensor_X > 0],
        lambda tensor_X: torch.equal(tensor_X, tensor_X),
        FORMAT,
    ],
)
def test_what_makes_the_host_wait_is_counted(
    gpu: PretendGpu, look: Callable[[Tensor], object]
) -> None:
    look(torch.ones(1, device=CUDA)[0] if look == FORMAT else torch.ones(1, device=CUDA))
    assert sum(gpu.waits.values()) == 1
    assert not gpu.blocking_copies


def test_a_wait_is_counted_by_its_operator_and_line(gpu: PretendGpu) -> None:
    value = torch.ones((), device=CUDA)
    line = sys._getframe().f_lineno + 1
    value.item()
    assert gpu.waits == {f"_local_scalar_dense {THIS_FILE}:{line}": 1}


def test_what_the_device_does_alone_is_no_wait(gpu: PretendGpu) -> None:
    tensor_X = torch.arange(4.0, device=CUDA)
    tensor_X[tensor_X > 2] = 0
    tensor_X = tensor_X.where(tensor_X > 0, 7)[torch.arange(2, device=CUDA)]
    assert (tensor_X.shape, tensor_X.sum().isfinite().shape) == ((2,), ())
    assert not gpu.host_waits()
    assert gpu.launches["where"] == gpu.launches["sum"] == 1


@pytest.mark.parametrize(
    ("copy", "is_blocking"),
    [
        (lambda pair: pair.on_gpu.cpu(), True),
        (lambda pair: pair.on_gpu.to("cpu"), True),
        (lambda pair: pair.on_cpu.to(CUDA), True),
        (lambda pair: pair.on_cpu.copy_(pair.on_gpu), True),
        (lambda pair: pair.on_gpu[torch.tensor([0])], True),
        (lambda pair: pair.on_cpu.to(CUDA, non_blocking=True), False),
        (lambda pair: pair.on_cpu.copy_(pair.on_gpu, non_blocking=True), False),
    ],
)
def test_copies_are_counted_by_whether_they_block(
    gpu: PretendGpu, copy: Callable[[Pair], Tensor], is_blocking: bool
) -> None:
    pair = Pair(torch.ones(3), torch.ones(3, device=CUDA))
    copy(pair)
    assert sum(gpu.blocking_copies.values()) == is_blocking
    assert sum(gpu.background_copies.values()) == (not is_blocking)
    assert sum(gpu.host_waits().values()) == is_blocking


@pytest.mark.usefixtures("gpu")
def test_faiss_takes_each_tensor_where_its_function_looks_for_it() -> None:
    rows_SD, on_gpu_SD = unit(50), unit(50).to(CUDA)
    resources, metric = faiss.StandardGpuResources(), faiss.METRIC_INNER_PRODUCT
    on_gpu = faiss.index_cpu_to_gpu(resources, 0, faiss.IndexFlatIP(128))
    on_gpu.add(on_gpu_SD)
    _, places_Q1 = on_gpu.search(on_gpu_SD, 1)
    assert places_Q1.is_cuda
    assert places_Q1[:, 0].tolist() == list(range(50))
    for refused in (
        lambda: faiss.knn_gpu(resources, rows_SD, on_gpu_SD, 1, metric, device=0),
        lambda: faiss.knn_gpu(resources, on_gpu_SD, rows_SD, 1, metric, device=0),
        lambda: faiss.knn_gpu(resources, on_gpu_SD.T[:, :50], on_gpu_SD, 1, metric, device=0),
        lambda: faiss.knn_gpu(resources, on_gpu_SD, on_gpu_SD, 1, metric),
        lambda: faiss.knn(on_gpu_SD, on_gpu_SD, 1, metric),
        lambda: on_gpu.search(rows_SD, 1),
        lambda: on_gpu.add(rows_SD),
        lambda: faiss.IndexFlatIP(128).add(on_gpu_SD),
    ):
        with pytest.raises(AssertionError):
            refused()
    with pytest.raises(RuntimeError, match="not implemented on GPU"):
        faiss.index_cpu_to_gpu(resources, 0, faiss.IndexHNSWFlat(16, 4))


@pytest.mark.usefixtures("gpu")
def test_faiss_has_the_limits_of_its_gpu_kernels() -> None:
    rows_SD = unit(3000, 16).to(CUDA)
    resources = faiss.StandardGpuResources()
    with pytest.raises(RuntimeError, match="up to 2048"):
        faiss.knn_gpu(resources, rows_SD, rows_SD, 2049, faiss.METRIC_INNER_PRODUCT, device=0)
    index = faiss.index_cpu_to_gpu(resources, 0, faiss.IndexFlatIP(16))
    index.add(rows_SD)
    with pytest.raises(RuntimeError, match="up to 2048"):
        index.search(rows_SD, 2049)
    index = GpuIndex(faiss.IndexIVFFlat(faiss.IndexFlatIP(16), 16, 2500))
    faiss.GpuParameterSpace().set_index_parameter(index, "nprobe", 2049)
    with pytest.raises(RuntimeError, match="nprobe selection up to 2048"):
        index.search(rows_SD, 1)


@pytest.mark.parametrize("allows", [True, False])
def test_convolutions_round_to_tf32_where_both_sides_ask_for_it(
    monkeypatch: pytest.MonkeyPatch, allows: bool
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allows)
    images_BCHW, weights = unit(8, 75).view(8, 3, 5, 5), unit(4, 27).view(4, 3, 3, 3)
    exact = functional.conv2d(images_BCHW, weights)
    with pretend_gpu(rounds_to_tf32=True):
        found = functional.conv2d(images_BCHW.to(CUDA), weights.to(CUDA)).cpu()
    error = (found - exact).abs().max()
    assert (1e-6 < error < 2**-10) if allows else error == 0


def test_nothing_stays_patched_after_a_failure() -> None:
    def patched() -> list[object]:
        return [
            torch.autocast,
            torch.Generator,
            torch.cuda.is_available,
            torch.cuda.Event,
            dist.init_process_group,
            pipeline._build,
            pipeline.ImagePipeline._outputs,
            getattr(faiss, "knn_gpu", None),
            torch.__future__.get_overwrite_module_params_on_conversion(),
            _get_current_dispatch_mode_stack(),
            _get_current_function_mode_stack(),
        ]

    def fail_on_the_gpu() -> None:
        with pretend_gpu():
            assert not any(now == then for now, then in zip(patched(), before, strict=True))
            raise KeyError

    before = patched()
    with pytest.raises(KeyError):
        fail_on_the_gpu()
    assert patched() == before
    assert not isinstance(torch.ones(3) + 1, DeviceTensor)


def test_each_pretend_gpu_counts_for_itself() -> None:
    with pretend_gpu() as first:
        torch.ones(3, device=CUDA).sum().item()
    with pretend_gpu() as second:
        pass
    assert sum(first.waits.values()) == 1
    assert not second.waits
    assert not second.launches


def test_threads_that_use_the_gpu_are_noted(gpu: PretendGpu) -> None:
    value = torch.ones(3, device=CUDA) + 1
    assert gpu.threads == {"MainThread"}
    thread = threading.Thread(target=value.cpu, name="another")
    thread.start()
    thread.join()
    assert gpu.threads == {"MainThread", "another"}
