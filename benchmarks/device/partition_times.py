"""Time every form of the partition that there is on a GPU, up to 100 million rows.

    python -m benchmarks.device.partition_times [--json FILE] [--smoke]

Needs torch alone. Rows and queries are float16, and float32 at the first size, where the dense form
is timed too. Each form is compared with float64 first; one that is refused or wrong is said to be.
G queries, S rows, D feature.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from and_dist.method.partition import log_partition
from and_dist.method.partition_gpu import forms_for
from and_dist.method.partition_merge import Partition
from benchmarks.device.exact import exact_partition, partition_errors, unit_rows
from benchmarks.device.figures import Figures
from benchmarks.device.requirements import require_gpu

DIM, TEMPERATURE = 128, 0.07
ROWS_DRAWN = 2**22
ROWS_COMPARED, QUERIES_COMPARED = 100_003, 64
MOST_APART = 0.01
REPEATS = 20


class Size(NamedTuple):
    """Hold numbers of queries and rows, and what they are called."""

    num_queries: int
    num_rows: int
    name: str


IMAGENET = 1_281_167
SIZES = (
    Size(256, IMAGENET, "256 queries, ImageNet's rows"),
    Size(4096, IMAGENET, "4,096 queries, ImageNet's rows"),
    Size(256, 100_000_000, "256 queries, 1e8 rows"),
    Size(4096, 15_625_000, "4,096 queries, a rank's rows of 64 at 1e9"),
)
SMOKE = (Size(8, 5001, "8 queries, 5,001 rows"),)


def draw_rows(num_rows: int, dtype: torch.dtype, random: torch.Generator) -> Tensor:
    """Return unit rows, drawn some millions at a time: all in float32 would not fit beside them."""
    rows_SD = torch.empty(num_rows, DIM, dtype=dtype, device=random.device)
    for block_SD in rows_SD.split(ROWS_DRAWN):
        block_SD.copy_(unit_rows(len(block_SD), DIM, dtype, random))
    return rows_SD


def dense(queries_GD: Tensor, rows_SD: Tensor, temperature: float) -> Partition:
    """Compute the partition from the whole matrix of logits."""
    logits_GS = (queries_GD / temperature) @ rows_SD.T
    log_z_G = logits_GS.logsumexp(dim=1)
    return Partition(log_z_G, logits_GS.sub_(log_z_G[:, None]).exp_() @ rows_SD)


def right_forms(figures: Figures, dtype: torch.dtype, random: torch.Generator) -> list[str]:
    """Return the forms that compute here and are as near to float64 as the type allows."""
    queries_GD = unit_rows(QUERIES_COMPARED, DIM, dtype, random)
    rows_SD = unit_rows(ROWS_COMPARED, DIM, dtype, random)
    exact = exact_partition(queries_GD, rows_SD, TEMPERATURE)
    right = []
    for form in forms_for(dtype, DIM):
        try:
            found = log_partition(queries_GD, rows_SD, TEMPERATURE, dtype, form)
        except Exception as error:  # a form that is refused must not end the others
            reason = str(error).partition("\n")[0][:150]
            figures.note(f"{form}, {dtype}", f"refused: {reason}")
            continue
        apart = partition_errors(found, exact)
        figures.note(f"{form}, {dtype}", f"off {apart[0]:.1e} in log Z, {apart[1]:.1e} in the mean")
        if max(apart) < MOST_APART:
            right.append(form)
    return right


def time_size(figures: Figures, size: Size, with_others: bool, random: torch.Generator) -> None:
    """Time the forms of float16 at a size, and those it is compared with if that is asked for."""
    queries_GD = unit_rows(size.num_queries, DIM, torch.float16, random)
    rows_SD = draw_rows(size.num_rows, torch.float16, random)
    given = queries_GD, rows_SD, TEMPERATURE
    cases = {
        f"{size.name}, {form}": partial(log_partition, *given, torch.float16, form)
        for form in right_forms(figures, torch.float16, random)
    }
    if with_others:
        wide = queries_GD.float(), rows_SD.float(), TEMPERATURE
        cases[f"{size.name}, float32"] = partial(log_partition, *wide)
        cases[f"{size.name}, dense in float16"] = partial(dense, *given)
    figures.time(cases, REPEATS, size.num_queries, "queries")


def main() -> None:
    """Time all sizes, the most wanted first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--smoke", action="store_true", help="small sizes, to see that it runs")
    given = parser.parse_args()
    require_gpu()
    figures, random = Figures(given.json), torch.Generator("cuda").manual_seed(0)
    for at, size in enumerate(SMOKE if given.smoke else SIZES):
        time_size(figures, size, with_others=at == 0, random=random)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
