from __future__ import annotations

import pytest
import torch

from and_dist.config.load import load_config
from and_dist.distributed.world import World
from and_dist.method.partition_kernels import is_faster_in_bfloat16
from and_dist.training.choices import choose_settings
from and_dist.training.state import build_bank
from tests.loading import world_of
from tests.pretend.device import pretend_gpu
from tests.pretend.tensors import CUDA


def chosen(num_rows: int, *overrides: str, device: torch.device | None = None) -> str:
    """Return the products that a lone rank chooses."""
    world = world_of()
    if device is not None:
        world = World(0, 1, 0, 1, device, world.group, world.side_group)
    config = load_config([], [*overrides, "discovery.memory_mb=200"])
    return choose_settings(config, num_rows, world).config.bank.products


@pytest.mark.parametrize("temperature", [0.02, 0.07])
def test_large_banks_of_float32_are_rounded_where_that_is_faster(temperature: float) -> None:
    at = f"objective.temperature={temperature}"
    usual = "bfloat16" if is_faster_in_bfloat16(temperature) else "stored"
    assert chosen(100_000, at) == usual
    assert chosen(99_999, at) == "stored"
    assert chosen(10**6, at, "bank.dtype=float16") == "stored"
    with pretend_gpu():
        on_gpu = chosen(100_000, at, device=CUDA)
        assert on_gpu == ("float16" if temperature == 0.07 else "stored")


@pytest.mark.parametrize("products", ["stored", "float16", "bfloat16"])
def test_what_the_config_says_is_done(products: str) -> None:
    for num_rows in (10, 10**6):
        assert chosen(num_rows, f"bank.products={products}") == products


@pytest.mark.parametrize(
    ("products", "dtype"),
    [("stored", None), ("float16", torch.float16), ("bfloat16", torch.bfloat16)],
)
def test_a_bank_multiplies_as_was_chosen(products: str, dtype: torch.dtype | None) -> None:
    config = load_config([], [f"bank.products={products}"])
    assert build_bank(config, 10, world_of()).products == dtype
