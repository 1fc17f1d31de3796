"""Choose for the keys of a config that say `auto`, once a run, with all ranks.

W ranks, X abilities of a rank.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from and_dist.config.comparison import AUTO, with_values
from and_dist.config.number_types import Processor, auto_precision, auto_products
from and_dist.config.schema import Config
from and_dist.distributed.collectives import gather_batch
from and_dist.distributed.world import World
from and_dist.method.discovery import Scale, choose_memory_mb
from and_dist.method.memory_bank import shard_range
from and_dist.method.partition_choice import Shapes, choose_form
from and_dist.method.partition_gpu import check_form
from and_dist.method.partition_kernels import is_faster_in_bfloat16

FIRST_MAJOR_FOR_16_BITS = 8
"""The compute capability from which a GPU has bfloat16, and torch has flash attention for it."""


class Chosen(NamedTuple):
    """Hold a config in which nothing says `auto`, and the figures that decided."""

    config: Config
    figures: dict[str, Any]


def choose_settings(config: Config, num_rows: int, world: World) -> Chosen:
    """Return the config with a value for every `auto`, the same on all ranks.

    Raise ValueError for a bank.form that does not take the rows.
    """
    chosen: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    processor = poorest_processor(config, world)
    if config.encoder.precision == AUTO:
        chosen["encoder.precision"] = auto_precision(processor)
    if config.bank.products == AUTO:
        shard = shard_range(num_rows, 0, world.size)[1], config.encoder.feature_dim
        temperature = config.objective.temperature
        chosen["bank.products"] = auto_products(
            config.bank, shard, num_rows, temperature, processor
        )
    if config.discovery.memory_mb == AUTO:
        itemsize = getattr(torch, config.bank.dtype).itemsize
        scale = Scale(num_rows, itemsize * config.encoder.feature_dim)
        neighbours, search = config.curriculum.neighbours, config.discovery.search
        chosen["discovery.memory_mb"] = choose_memory_mb(world, scale, neighbours, search)
    config = with_values(config, chosen)
    shapes = shapes_of(config, num_rows, world.size)
    if config.bank.form == AUTO:
        choice = choose_form(shapes, config.objective.temperature, world)
        config = with_values(config, {"bank.form": choice.form})
        if choice.milliseconds:
            figures["partition_ms"] = choice.milliseconds
    if world.device.type == "cuda":
        check_form(config.bank.form, shapes.products, shapes.dim)
    return Chosen(config, figures)


def shapes_of(config: Config, num_rows: int, world_size: int) -> Shapes:
    """Return what a step of a run multiplies."""
    stored = getattr(torch, config.bank.dtype)
    local = -(-min(config.optim.batch_size, num_rows) // world_size)
    return Shapes(
        world_size * -(-local // config.optim.accumulate),
        shard_range(num_rows, 0, world_size)[1],
        config.encoder.feature_dim,
        stored,
        products_of(config) or stored,
    )


def products_of(config: Config) -> torch.dtype | None:
    """Return the type that rows are rounded to before they are multiplied, None if they are not."""
    products = config.bank.products
    return None if products in (AUTO, "stored") else getattr(torch, products)


def poorest_processor(config: Config, world: World) -> Processor:
    """Return what the ranks compute on, and of their abilities and memories the least."""
    device = world.device
    is_able, memory_bytes = is_faster_in_bfloat16(config.objective.temperature), 0
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        is_able, memory_bytes = about.major >= FIRST_MAJOR_FOR_16_BITS, about.total_memory
    abilities_1X = torch.tensor([[int(is_able), memory_bytes]], device=device)
    (abilities_WX,) = gather_batch(world, [abilities_1X])
    least = abilities_WX.amin(dim=0).tolist()
    return Processor(device.type == "cuda", bool(least[0]), least[1])
