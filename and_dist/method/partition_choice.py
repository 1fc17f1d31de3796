"""Choose the form in which a GPU computes partitions, by timing those there are on a run's shapes.

G queries, S rows, D feature.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from and_dist.distributed.collectives import on_coordinator, reduce_sum
from and_dist.distributed.world import World
from and_dist.method.partition import log_partition
from and_dist.method.partition_gpu import ATTENTION, forms_for

log = logging.getLogger(__name__)

QUERIES_CHECKED, ROWS_CHECKED = 64, 20_000
"""The queries and rows of the comparison with float64, on every rank."""
MOST_APART = 0.01
"""The largest error of log Z and of a mean in 16 bits; measured 1e-4."""
SECONDS_A_FORM, MOST_REPEATS = 0.2, 20
SHARE_OF_FREE = 0.25
"""The share of a GPU's free memory that rows may take while they are timed."""
ROWS_DRAWN = 2**18


class Shapes(NamedTuple):
    """Hold what a step multiplies: its queries, the rows of the longest shard, and their types."""

    num_queries: int
    num_rows: int
    dim: int
    stored: torch.dtype
    products: torch.dtype


class Choice(NamedTuple):
    """Hold the fastest form, and the milliseconds of each that was timed."""

    form: str
    milliseconds: dict[str, float]


def choose_form(shapes: Shapes, temperature: float, world: World) -> Choice:
    """Return the form that is fastest on rank 0 among those that are right on all ranks."""
    forms = forms_for(shapes.products, shapes.dim)
    if world.device.type == "cpu" or len(forms) == 1:
        return Choice(ATTENTION, {})
    few = shapes._replace(num_queries=QUERIES_CHECKED, num_rows=ROWS_CHECKED)
    # The comparison is of forms alone, so both have been rounded to the type of the products.
    queries_GD, rows_SD = (drawn.to(shapes.products) for drawn in _draw(few, world.device))
    is_right = [_is_right(queries_GD, rows_SD, temperature, shapes, form) for form in forms]
    num_right = reduce_sum(world, torch.tensor(is_right, device=world.device).int()).tolist()
    usable = [form for form, ranks in zip(forms, num_right, strict=True) if ranks == world.size]
    if not usable:
        raise RuntimeError(f"none of the forms {', '.join(forms)} computes partitions here")

    def time_all() -> dict[str, float]:
        scene = _draw(shapes, world.device)
        given = (*scene, temperature, shapes.products)
        return {form: _milliseconds(partial(log_partition, *given, form)) for form in usable}

    milliseconds = on_coordinator(world, "timing the forms of the partition", time_all)
    return Choice(min(usable, key=milliseconds.__getitem__), milliseconds)


def _draw(shapes: Shapes, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return queries and rows of unit norm, of as many rows as there is memory for."""
    free, _ = torch.cuda.mem_get_info(device)
    row_bytes = shapes.dim * shapes.stored.itemsize
    num_rows = min(shapes.num_rows, int(SHARE_OF_FREE * free / row_bytes))
    rows_SD = torch.empty(num_rows, shapes.dim, dtype=shapes.stored, device=device)
    for block_SD in rows_SD.split(ROWS_DRAWN):
        drawn_SD = torch.randn(block_SD.shape, device=device)
        block_SD.copy_(functional.normalize(drawn_SD, dim=1))
    queries_GD = torch.randn(shapes.num_queries, shapes.dim, device=device)
    return functional.normalize(queries_GD, dim=1), rows_SD


def _is_right(
    queries_GD: Tensor, rows_SD: Tensor, temperature: float, shapes: Shapes, form: str
) -> bool:
    """Return whether a form computes here, and is as near to float64 as 16 bits allow."""
    try:
        found = log_partition(queries_GD, rows_SD, temperature, shapes.products, form)
    except Exception as error:  # a compiler raises many kinds, and another form takes its place
        log.warning("bank.form=%s does not run on this GPU and is left out: %s", form, error)
        return False
    exact = log_partition(queries_GD.double(), rows_SD.double(), temperature)
    apart = max(float((a.double() - b).abs().max()) for a, b in zip(found, exact, strict=True))
    is_right = apart < MOST_APART
    if not is_right:
        log.warning("bank.form=%s is %.2g off on this GPU and is left out", form, apart)
    return is_right


def _milliseconds(compute: Callable[[], object]) -> float:
    """Return the least time of some repeats, after one that loads and compiles what it takes."""
    best = float("inf")
    compute()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(MOST_REPEATS):
        started = time.perf_counter()
        compute()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
        if time.perf_counter() - begun > SECONDS_A_FORM:
            break
    return round(1e3 * best, 4)
