"""Choose for the keys of a config that say `auto`, once a run, with all ranks."""

from __future__ import annotations

from typing import Any

import torch

from and_dist.config.comparison import AUTO, with_values
from and_dist.config.schema import ROWS_WORTH_ROUNDING, Config
from and_dist.distributed.collectives import reduce_sum
from and_dist.distributed.world import World
from and_dist.method.discovery import Scale, choose_memory_mb
from and_dist.method.partition_kernels import is_faster_in_bfloat16


def choose_settings(config: Config, num_rows: int, world: World) -> Config:
    """Return the config with a value for every `auto`, the same on all ranks."""
    chosen: dict[str, Any] = {}
    if config.bank.products == AUTO:
        chosen["bank.products"] = choose_products(config, num_rows, world)
    if config.discovery.memory_mb == AUTO:
        itemsize = getattr(torch, config.bank.dtype).itemsize
        scale = Scale(num_rows, itemsize * config.encoder.feature_dim)
        neighbours, search = config.curriculum.neighbours, config.discovery.search
        chosen["discovery.memory_mb"] = choose_memory_mb(world, scale, neighbours, search)
    return with_values(config, chosen)


def choose_products(config: Config, num_rows: int, world: World) -> str:
    """Return bfloat16 if there are many float32 rows and it is faster for every rank's CPU."""
    is_worth_it = config.bank.dtype == "float32" and num_rows >= ROWS_WORTH_ROUNDING
    on_cpu = world.device.type == "cpu"
    is_slower = not (on_cpu and is_faster_in_bfloat16(config.objective.temperature))
    num_slower = reduce_sum(world, torch.tensor(int(is_slower), device=world.device))
    return "bfloat16" if is_worth_it and int(num_slower) == 0 else "stored"
