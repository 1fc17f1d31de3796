"""Test the Triton kernels of benchmarks/device without a GPU: interpreted, and compiled.

Triton decides when it is imported whether it interprets or compiles, for the whole process. So each
has a process of its own here, which imports it first. G queries, S rows, N all rows,
D feature, C candidates.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.device.exact import exact_partition, partition_errors, unit_rows
from tests import reference

pytestmark = pytest.mark.thorough
TEMPERATURE = 0.1
DIM = 128
TILES = (16, 32, 4, 1)
"""Small, so that a few hundred rows are many tiles, and neither 16 nor 32 divides what is tried."""


@contextmanager
def process_with(triton_interpret: str) -> Iterator[ProcessPoolExecutor]:
    """Start a process whose Triton interprets (1) or compiles (0)."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", triton_interpret)
            process.submit(os.getpid).result()
        yield process


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """Give the one process in which all kernels of this module are interpreted."""
    with process_with("1") as process:
        yield process


def interpret_partition(
    queries_GD: Tensor, rows_SD: Tensor, temperature: float, processors: int
) -> tuple[Tensor, Tensor]:
    """Run the partition kernel and its merge in this process."""
    from and_dist.method.partition_triton import Tiles
    from benchmarks.device.partition_kernel import partition

    found = partition(queries_GD, rows_SD, temperature, Tiles(*TILES), processors=processors)
    return found.log_z, found.mean


def interpret_scan(bank_ND: Tensor, shares: int, is_search: bool) -> tuple[Tensor, ...]:
    """Run the scan kernel in this process, some rows at a time."""
    from and_dist.method.partition_triton import Tiles
    from benchmarks.device.scan_kernel import Launch, scan

    launch = Launch(Tiles(*TILES), "ieee", shares, is_search, rows_at_once=100)
    return tuple(scan(bank_ND, TEMPERATURE, launch))


def count_failed_compilations(tiles: tuple[int, int, int, int], is_chosen: bool = False) -> int:
    """Compile the partition kernel for sm_90 with some tiles in this process."""
    from dataclasses import replace

    from benchmarks.device.compilation import compile_variants
    from benchmarks.device.partition_kernel import variants

    variant = next(variants())
    queries, rows, warps, stages = tiles
    shape = {"TILE_QUERIES": queries, "TILE_ROWS": rows, "STAGES": stages}
    variant = replace(
        variant,
        constants={**variant.constants, **shape},
        options={"num_warps": warps, "num_stages": stages},
        is_chosen=is_chosen,
    )
    return compile_variants([variant], [90], None)


def assert_partition_equals_dense(
    process: ProcessPoolExecutor,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    temperature: float = TEMPERATURE,
    processors: int = 4,
) -> None:
    """Assert that the kernel's log Z and mean are those of float64, to the rounding of the type."""
    num_queries, num_rows, dim = shape
    random = torch.Generator().manual_seed(0)
    queries_GD = unit_rows(num_queries, dim, dtype, random)
    rows_SD = unit_rows(num_rows, dim, dtype, random)
    given = (queries_GD, rows_SD, temperature)
    found = process.submit(interpret_partition, *given, processors).result()
    exact = exact_partition(*given)
    assert max(partition_errors(type(exact)(*found), exact)) < TOLERANCES[dtype]


TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3}
SHAPES = [(37, 501, 128), (1, 1, 16), (16, 32, 64), (50, 333, 64)]
"""Queries, rows and features; of the third alone tiles are whole."""


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_partition_kernel_equals_dense(
    interpreter: ProcessPoolExecutor, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    assert_partition_equals_dense(interpreter, shape, dtype)


@pytest.mark.parametrize("processors", [1, 3, 64])
def test_partition_kernel_equals_dense_over_any_number_of_shares(
    interpreter: ProcessPoolExecutor, processors: int
) -> None:
    """Ask for 64 shares and get 25, one for each tile: more than the merge reads at a time."""
    shape = (5, 777, 64)
    assert_partition_equals_dense(interpreter, shape, torch.float32, processors=processors)


@pytest.mark.parametrize("temperature", [0.02, 1.0])
def test_partition_kernel_equals_dense_at_any_temperature(
    interpreter: ProcessPoolExecutor, temperature: float
) -> None:
    shape = (20, 300, 64)
    assert_partition_equals_dense(interpreter, shape, torch.float32, temperature)


def test_partition_kernel_loses_no_small_probabilities_in_float16(
    interpreter: ProcessPoolExecutor,
) -> None:
    """Beside a row like the query, 3,000 others have 2.3e-8 of its weight, which float16 lacks."""
    axes_DD = torch.eye(64, dtype=torch.float16)
    rows_SD = torch.cat([axes_DD[:1], axes_DD[1:2].expand(3_000, -1)])
    given = (axes_DD[:1], rows_SD, 1 / 17.6)
    _, mean_GD = interpreter.submit(interpret_partition, *given, 4).result()
    exact_GD = exact_partition(*given).mean
    torch.testing.assert_close(mean_GD.double(), exact_GD, rtol=1e-3, atol=0)


@pytest.fixture(scope="module")
def bank_ND() -> Tensor:
    """Return 171 unit rows in float64, of which two are equal."""
    bank_ND = unit_rows(171, DIM, torch.float64, torch.Generator().manual_seed(0))
    bank_ND[150] = bank_ND[7]
    return bank_ND


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shares", [1, pytest.param(3, marks=pytest.mark.nightly)])
def test_scan_kernel_finds_the_entropy_of_the_reference(
    interpreter: ProcessPoolExecutor, bank_ND: Tensor, shares: int, dtype: torch.dtype
) -> None:
    rounded_ND = bank_ND.to(dtype)
    entropy_N, _, _ = interpreter.submit(interpret_scan, rounded_ND, shares, True).result()
    expected_N = reference.entropy(rounded_ND.double(), TEMPERATURE)
    assert (entropy_N - expected_N).abs().max() < 1e-4


@pytest.mark.parametrize("shares", [pytest.param(1, marks=pytest.mark.nightly), 3])
def test_scan_kernel_finds_the_nearest_row_of_the_reference(
    interpreter: ProcessPoolExecutor, bank_ND: Tensor, shares: int
) -> None:
    """A row is no neighbour of itself, though an equal row is one."""
    _, similarity_NC, rows_NC = interpreter.submit(
        interpret_scan, bank_ND.float(), shares, True
    ).result()
    for row in (0, 7, 99, 100, 150, 170):
        (nearest,) = reference.nearest(bank_ND, row, 1)
        assert rows_NC[row, 0] == nearest
        cosine = (bank_ND[row] @ bank_ND[nearest]).item()
        assert similarity_NC[row, 0].item() == pytest.approx(cosine, abs=1e-6)


@pytest.mark.nightly
def test_scan_kernel_without_search_finds_the_same_entropy(
    interpreter: ProcessPoolExecutor, bank_ND: Tensor
) -> None:
    with_search = interpreter.submit(interpret_scan, bank_ND.float(), 2, True).result()
    without = interpreter.submit(interpret_scan, bank_ND.float(), 2, False).result()
    assert torch.equal(with_search[0], without[0])
    assert without[1].shape == without[2].shape == (len(bank_ND), 0)


@pytest.mark.nightly
def test_a_kernel_that_does_not_compile_is_counted_as_failed() -> None:
    """A tile of 48 rows does not compile, because 48 is no power of 2."""
    with process_with("0") as compiler:
        assert compiler.submit(count_failed_compilations, (64, 48, 4, 1)).result() == 1


@pytest.mark.nightly
def test_a_chosen_kernel_that_spills_is_counted_as_failed() -> None:
    """Tiles of 128 by 128 on four warps spill on all architectures, and others may."""
    with process_with("0") as compiler:
        of_tiles = (128, 128, 4, 2)
        assert compiler.submit(count_failed_compilations, of_tiles, True).result() == 1
        assert compiler.submit(count_failed_compilations, of_tiles, False).result() == 0


@pytest.mark.nightly
@pytest.mark.whole_run
@pytest.mark.parametrize("module", ["partition_kernel", "scan_kernel"])
def test_every_kernel_compiles_by_tensor_cores_and_the_chosen_without_spills(
    module: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", f"benchmarks.device.{module}", "compile", "--cubins", tmp_path]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("sm_")]
    assert len(lines) == len(list(tmp_path.glob("*.cubin")))
    for architecture in ("sm_80", "sm_90", "sm_100"):
        products = [at for at in lines if at.startswith(f"{architecture} ") and "merge" not in at]
        assert products
        assert not any("; 0 mma" in at or "; 0 wgmma" in at or "; 0 tcg" in at for at in products)
        chosen = [line for line in products if line.endswith("; chosen")]
        assert chosen
        assert all(" 0 bytes spilled" in line and "more than" not in line for line in chosen)
