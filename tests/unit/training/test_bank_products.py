from __future__ import annotations

import pytest
import torch

from and_dist.config.load import load_config
from and_dist.method.partition_kernels import is_faster_in_bfloat16
from and_dist.training.state import choose_products

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("temperature", [0.02, 0.07])
def test_large_banks_of_float32_are_rounded_where_that_is_faster(temperature: float) -> None:
    config = load_config([], [f"objective.temperature={temperature}"])
    usual = torch.bfloat16 if is_faster_in_bfloat16(temperature) else None
    assert choose_products(config, 100_000, CPU) == usual
    assert choose_products(config, 99_999, CPU) is None
    assert choose_products(config, 100_000, GPU) is None


def test_what_the_config_says_is_done() -> None:
    narrow = load_config([], ["bank.products=bfloat16"])
    stored = load_config([], ["bank.products=stored"])
    in_16_bits = load_config([], ["bank.dtype=float16"])
    assert choose_products(narrow, 10, GPU) == choose_products(narrow, 10, CPU) == torch.bfloat16
    assert choose_products(stored, 10**6, CPU) is None
    assert choose_products(in_16_bits, 10**6, CPU) is None
