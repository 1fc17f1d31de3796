"""Choose the types of numbers where the config says bank.products or encoder.precision=auto.

No torch.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from and_dist.config.schema import BankConfig

ROWS_WORTH_ROUNDING = 100_000
"""The number of rows from which bank.products=auto may round. With fewer, the partition is a small
part of a step, and float32 keeps a run equal on all machines."""
LEAST_TEMPERATURE_IN_FLOAT16 = 0.07
"""The lowest temperature at which attention in float16 keeps the weights of rows that are far from
a query, beside one that equals it: e^(-1 / 0.07) is ten times the smallest float16."""
SHARE_OF_A_COPY = 0.1
"""The share of a GPU's memory that bank.products=auto may fill with a copy in 16 bits."""
Products = Literal["stored", "float16", "bfloat16"]
Precision = Literal["float32", "bfloat16"]


class Processor(NamedTuple):
    """Say what a rank computes on."""

    is_gpu: bool
    multiplies_16_bits: bool
    """True if products of 16 bits are faster and as good as their types: on GPUs of compute
    capability 8.0 and more, and on some CPUs in bfloat16."""
    memory_bytes: float
    """Bytes of a GPU's memory."""


def auto_products(
    bank: BankConfig, shard: tuple[int, int], num_rows: int, temperature: float, on: Processor
) -> Products:
    """Return the type in which rows are multiplied; `shard` is its rows and their features.

    On a GPU, float32 rows have a copy in float16 beside them, which is eight times nearer to
    them than bfloat16 would be.
    """
    is_worth_it = bank.dtype == "float32" and num_rows >= ROWS_WORTH_ROUNDING
    if not is_worth_it or not on.multiplies_16_bits:
        return "stored"
    if not on.is_gpu:
        return "bfloat16"
    fits = copy_bytes(*shard) <= SHARE_OF_A_COPY * on.memory_bytes
    return "float16" if fits and temperature >= LEAST_TEMPERATURE_IN_FLOAT16 else "stored"


def copy_bytes(num_rows: int, dim: int) -> int:
    """Return the bytes of a copy of rows in 16 bits."""
    return 2 * num_rows * dim


def auto_precision(on: Processor) -> Precision:
    """Return the type of activations."""
    return "bfloat16" if on.is_gpu and on.multiplies_16_bits else "float32"
