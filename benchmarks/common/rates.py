"""What the machine itself can do: multiply, copy, decode, write. Floors follow from that."""

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
"""Of the matrices on a CPU; a GPU needs larger ones to be at its best."""
GPU_SIDE = 8192
COPY_BYTES = 256_000_000
DISTINCT, IMAGES = 16, 64
SECONDS = 0.4
"""For each rate, after one run to warm up."""
FEWEST, MOST = 3, 50

Rates = dict[str, float]


def machine_rates(threads: int) -> Rates:
    """The best of some repeats, on so many threads; and a GPU's, where there is one.

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
    """GFLOP/s of a large square product."""
    side = GPU_SIDE if device == "cuda" else SIDE
    left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    return 2e-9 * side**3 / least_seconds(lambda: torch.mm(left, right, out=product), device)


def copy_rate(device: str) -> float:
    """GB/s of a copy from memory to memory, which no cache holds."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 1e-9 * COPY_BYTES / least_seconds(lambda: target.copy_(source), device)


def decode_rates(threads: int) -> Rates:
    """Whole JPEGs by DALI on a CPU, from memory; the MB are of the files."""
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
    """MB/s of a file of `size` bytes to the page cache, and until it is on the disk."""
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
    """MB/s of a file that the page cache has."""
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
    """No disk can make it smaller; drawn once."""
    noise = _draw_noise()
    for start in range(0, size, len(noise)):
        file.write(noise[: size - start])


@cache
def _draw_noise() -> bytes:
    return np.random.default_rng(0).bytes(1 << 24)


def least_seconds(case: Callable[[], object], device: str) -> float:
    """Of as many repeats as fit; what a GPU was given has to be done."""

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
