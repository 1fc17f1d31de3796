"""Say how a GPU multiplies and sums: which products are rounded, and whether sums keep their order.

torch lets cuDNN round what float32 convolutions multiply to TF32, which keeps 10 of the 23 bits of
a fraction, and lets libraries choose kernels that sum in another order each time. Here both are
choices of a run: only an encoder that trains may round, and everything else is float32.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""A variable, and the value with which cuBLAS sums in one order; cuBLAS reads it when it starts."""


@contextmanager
def exact_products() -> Iterator[None]:
    """Multiply float32 in float32 on a GPU, whatever torch or the environment would do."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = False
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


@contextmanager
def training_products(is_tf32: bool) -> Iterator[None]:
    """Let float32 convolutions round to TF32 on a GPU, or not, in a training step.

    The backward pass has to be inside, since its convolutions look at the same setting.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = is_tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def repeatable_sums(device: torch.device, is_wanted: bool) -> Iterator[None]:
    """Use only those kernels of a GPU that give the same bits each time; a CPU has no others.

    torch raises RuntimeError for an operator that has no such kernel.
    """
    if device.type != "cuda" or not is_wanted:
        yield
        return
    os.environ.setdefault(*CUBLAS_WORKSPACE)
    cudnn: Any = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    was_on = torch.are_deterministic_algorithms_enabled()
    before = cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # No value of memory that nothing has written is ever read, so it need not be filled with NaN.
    cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = True, False, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on)
        cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = before
