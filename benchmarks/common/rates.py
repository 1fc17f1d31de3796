"""Measure the machine's rates: to multiply, copy, decode, write. Floors are computed from them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from io import RawIOBase
from pathlib import Path

import numpy as np
import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from benchmarks.common.images import photos

SIDE = 1536
"""Side of the square matrices on a CPU; a GPU needs larger ones to reach its full rate."""
GPU_SIDE = 8192
COPY_BYTES = 256_000_000
DISTINCT, IMAGES = 16, 64
SECONDS = 0.4
"""The least time that a rate is measured for, after one run to warm up."""
FEWEST, MOST = 3, 50

Rates = dict[str, float]


def machine_rates(threads: int) -> Rates:
    """Return the machine's best rates over some repeats on `threads` threads; and a GPU's if there
    is one.

    GFLOP are 10^9 operations, two for each product of a matrix product; GB of a copy are read once
    and written once; decoding is of JPEGs of 500 x 375.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rates = {
            "threads": threads,
            "matrix_fp32_gflops": matrix_rate(torch.float32, "cpu"),
            "matrix_bf16_gflops": matrix_rate(torch.bfloat16, "cpu"),
            "copy_gb_s": copy_rate("cpu"),
            **decode_rates(threads),
        }
        if torch.cuda.is_available():
            rates["gpu_matrix_fp32_gflops"] = matrix_rate(torch.float32, "cuda")
            rates["gpu_matrix_bf16_gflops"] = matrix_rate(torch.bfloat16, "cuda")
            rates["gpu_copy_gb_s"] = copy_rate("cuda")
    finally:
        torch.set_num_threads(before)
    return {name: float(f"{rate:.4g}") for name, rate in rates.items()}


def matrix_rate(dtype: torch.dtype, device: str) -> float:
    """Return the GFLOP/s of a large square matrix product."""
    side = GPU_SIDE if device == "cuda" else SIDE
    left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    return 2e-9 * side**3 / least_seconds(lambda: torch.mm(left, right, out=product), device)


def copy_rate(device: str) -> float:
    """Return the GB/s of a copy from memory to memory, too large for any cache."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 1e-9 * COPY_BYTES / least_seconds(lambda: target.copy_(source), device)


def decode_rates(threads: int) -> Rates:
    """Return images/s and MB/s (of files) at which DALI decodes whole JPEGs from memory on a
    CPU."""
    files = [np.frombuffer(content, np.uint8) for content in photos(DISTINCT)]
    batch = files * (IMAGES // DISTINCT)
    pipeline = Pipeline(IMAGES, threads, None, prefetch_queue_depth=3)
    with pipeline:
        file = fn.external_source(source=lambda: batch, batch=True)
        pipeline.set_outputs(fn.decoders.image(file, output_type=types.RGB))
    pipeline.build()
    seconds = least_seconds(pipeline.run, "cpu")
    megabytes = sum(len(file) for file in batch) / 1e6
    return {"decode_images_s": IMAGES / seconds, "decode_mb_s": megabytes / seconds}


def write_rate(folder: Path, size: int) -> tuple[float, float]:
    """Return the MB/s at which a file of `size` bytes is written to the page cache, and to the
    disk."""
    path, cached, flushed = folder / "rate", [], []
    for _ in range(FEWEST):
        started = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            _write_noise(file, size)
            cached.append(time.perf_counter() - started)
            os.fsync(file.fileno())
            flushed.append(time.perf_counter() - started)
        path.unlink()
    return 1e-6 * size / min(cached), 1e-6 * size / min(flushed)


def read_rate(folder: Path, size: int) -> float:
    """Return the MB/s at which a file is read from the page cache."""
    path, target, seconds = folder / "rate", bytearray(size), []
    with path.open("wb", buffering=0) as file:
        _write_noise(file, size)
    for _ in range(FEWEST):
        started = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            file.readinto(target)
        seconds.append(time.perf_counter() - started)
    path.unlink()
    return 1e-6 * size / min(seconds)


def _write_noise(file: RawIOBase, size: int) -> None:
    """Write random bytes, which no file system can compress; they are drawn once."""
    noise = _draw_noise()
    for start in range(0, size, len(noise)):
        file.write(noise[: size - start])


@cache
def _draw_noise() -> bytes:
    return np.random.default_rng(0).bytes(1 << 24)


def least_seconds(case: Callable[[], object], device: str) -> float:
    """Return the least seconds of as many repeats as fit into SECONDS; a GPU's work is waited
    for."""

    def run() -> float:
        started = time.perf_counter()
        case()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    run()
    seconds = [run() for _ in range(FEWEST)]
    while sum(seconds) < SECONDS and len(seconds) < MOST:
        seconds.append(run())
    return min(seconds)
