from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from and_dist.method.partition import log_partition, log_partition_of_own
from and_dist.method.partition_kernels import select_kernel
from and_dist.method.partition_merge import Partition, merge

SHAPES = [(252, 507, 123), (1, 1, 1), (3, 20_000, 128), (64, 1003, 16), (700, 41, 8)]


def unit(*shape: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(*shape, generator=random, dtype=torch.float64), dim=-1)


def dense(queries_GD: Tensor, rows_SD: Tensor, temperature: float) -> Partition:
    logits_GS = queries_GD.double() @ rows_SD.double().T / temperature
    return Partition(logits_GS.logsumexp(1), logits_GS.softmax(1) @ rows_SD.double())


# Measured worst over these shapes: float64 4e-15, float32 4e-6, float16 3e-4, bfloat16 4e-3; on
# CPUs where that rounds logits too, 2.7e-2 of log Z at temperature 0.05, of a bound of 7.8e-2.
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)],
)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_fused_equals_dense(
    dtype: torch.dtype, tolerance: float, shape: tuple[int, int, int], temperature: float
) -> None:
    num_queries, num_rows, dim = shape
    queries_GD = unit(num_queries, dim, seed=1).to(dtype)
    rows_SD = unit(num_rows, dim, seed=2).to(dtype)
    ours = log_partition(queries_GD, rows_SD, temperature)
    expected = dense(queries_GD, rows_SD, temperature)
    assert ours.log_z.dtype == ours.mean.dtype == torch.promote_types(dtype, torch.float32)
    bound = 2**-8 / temperature if dtype == torch.bfloat16 else tolerance
    torch.testing.assert_close(ours.log_z.double(), expected.log_z, rtol=0, atol=bound)
    torch.testing.assert_close(ours.mean.double(), expected.mean, rtol=0, atol=tolerance)


@pytest.mark.parametrize("temperature", [0.03, 0.05, 0.07, 0.1, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_in_bfloat16_are_within_their_bound(
    temperature: float, dtype: torch.dtype
) -> None:
    """2^-8 / tau: the rounding of both factors, or of one and of the logit. One row lies close to
    every query, which is where the whole error of one product is seen; there are more rows than lie
    in a block, and temperatures on both sides of what one form is for."""
    queries_GD, rows_SD = unit(64, 128, seed=1), unit(40_000, 128, seed=2)
    rows_SD[:64] = functional.normalize(queries_GD + 0.05 * unit(64, 128, seed=3), dim=1)
    ours = log_partition(queries_GD.float(), rows_SD.to(dtype), temperature, torch.bfloat16)
    expected = dense(queries_GD, rows_SD, temperature)
    error_G = (ours.log_z - expected.log_z).abs()
    assert 0 < error_G.max() < 2**-8 / temperature
    off_G = (ours.mean - expected.mean).norm(dim=1) / expected.mean.norm(dim=1)
    assert off_G.max() < 0.02


def extra_memory_of(work: Callable[[], object]) -> float:
    """Bytes at the highest, above what this process held before."""

    def read(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = read("VmRSS")
    work()
    return read("VmHWM") - before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_partition_takes_little_memory(dtype: torch.dtype) -> None:
    """The similarities are 205 MB; where the operator packs rows of 16 bits, all at once 51 MB."""
    queries_GD, rows_SD = unit(256, 128).float(), torch.rand(200_000, 128).to(dtype)
    log_partition(queries_GD, rows_SD[:20_000], 0.1, torch.bfloat16)
    assert extra_memory_of(lambda: log_partition(queries_GD, rows_SD, 0.1, torch.bfloat16)) < 20e6
    assert extra_memory_of(lambda: log_partition(queries_GD, rows_SD, 0.1)) < 20e6


def test_a_gpu_multiplies_float64_without_a_fused_operator() -> None:
    """Which runs here as well; there are more rows than lie in a block."""
    queries_GD, rows_SD = unit(3, 8, seed=1), unit(20_000, 8, seed=2)
    kernel = select_kernel(torch.device("cuda"), torch.float64, 0.1)
    close(kernel(queries_GD, rows_SD, 0.1), dense(queries_GD, rows_SD, 0.1))


def test_over_no_rows_is_nothing() -> None:
    part = log_partition(unit(3, 8), torch.empty(0, 8, dtype=torch.float64), 0.1)
    assert part.log_z.tolist() == [-torch.inf] * 3
    assert part.mean.tolist() == [[0.0] * 8] * 3


def test_queries_carry_no_gradient_through_it() -> None:
    queries_GD = unit(3, 8).requires_grad_()
    assert not log_partition(queries_GD, unit(5, 8), 0.1).log_z.requires_grad


def close(ours: Partition, theirs: Partition) -> None:
    torch.testing.assert_close(ours.log_z, theirs.log_z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-12, atol=1e-12)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.sampled_from([0.05, 0.1, 1.0]))
def test_shards_merge_to_the_whole(lengths: list[int], temperature: float) -> None:
    queries_GD, rows_SD = unit(4, 6, seed=1), unit(sum(lengths), 6, seed=2)
    parts = [log_partition(queries_GD, rows, temperature) for rows in rows_SD.split(lengths)]
    close(merge(parts), log_partition(queries_GD, rows_SD, temperature))


@given(st.lists(st.integers(0, 12), min_size=3, max_size=3))
def test_merge_is_associative(lengths: list[int]) -> None:
    queries_GD, rows_SD = unit(4, 6, seed=1), unit(sum(lengths), 6, seed=2)
    a, b, c = (log_partition(queries_GD, rows, 0.1) for rows in rows_SD.split(lengths))
    close(merge([merge([a, b]), c]), merge([a, merge([b, c])]))
    close(merge([a, b]), merge([b, a]))


def test_rows_of_a_querys_own_equal_dense_over_the_marked_ones() -> None:
    queries_GD, rows_GPD = unit(5, 8, seed=1), unit(5, 4, 8, seed=2)
    is_row_GP = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) < 0.6
    is_row_GP[2] = False
    ours = log_partition_of_own(queries_GD, rows_GPD, is_row_GP, 0.1)
    parts = [
        log_partition(query[None], rows[marked], 0.1)
        for query, rows, marked in zip(queries_GD, rows_GPD, is_row_GP, strict=True)
    ]
    close(ours, Partition(*(torch.cat(values) for values in zip(*parts, strict=True))))
    assert ours.log_z[2] == -torch.inf
