"""Choose for the keys of a config that say `auto`, once a run, with all ranks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from and_dist.config.comparison import AUTO, with_values
from and_dist.config.schema import ROWS_WORTH_ROUNDING, Config
from and_dist.distributed.collectives import reduce_sum
from and_dist.distributed.world import World
from and_dist.method.discovery import Scale, choose_memory_mb
from and_dist.method.memory_bank import shard_range
from and_dist.method.partition_choice import Shapes, choose_form
from and_dist.method.partition_gpu import check_form
from and_dist.method.partition_kernels import is_faster_in_bfloat16


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
    if config.bank.products == AUTO:
        chosen["bank.products"] = choose_products(config, num_rows, world)
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
    rounded = torch.bfloat16 if config.bank.products == "bfloat16" else stored
    return Shapes(
        world_size * -(-min(config.optim.batch_size, num_rows) // world_size),
        shard_range(num_rows, 0, world_size)[1],
        config.encoder.feature_dim,
        stored,
        rounded,
    )


def choose_products(config: Config, num_rows: int, world: World) -> str:
    """Return bfloat16 if there are many float32 rows and it is faster for every rank's CPU."""
    is_worth_it = config.bank.dtype == "float32" and num_rows >= ROWS_WORTH_ROUNDING
    on_cpu = world.device.type == "cpu"
    is_slower = not (on_cpu and is_faster_in_bfloat16(config.objective.temperature))
    num_slower = reduce_sum(world, torch.tensor(int(is_slower), device=world.device))
    return "bfloat16" if is_worth_it and int(num_slower) == 0 else "stored"
