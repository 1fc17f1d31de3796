"""Compile, check and time the Triton kernel that computes a partition, with other tiles too.

    python -m benchmarks.device.partition_kernel compile [--architectures 80 90] [--cubins FOLDER]
    TRITON_INTERPRET=1 python -m benchmarks.device.partition_kernel check
    python -m benchmarks.device.partition_kernel time [--rows N]

`compile` needs no GPU and ends with exit code 1 if a variant does not compile. `check` compares
with float64 on a CPU. `time` needs a GPU and times the kernel with several tiles beside
log_partition and torch's attention operators. The kernel is that of and_dist's form `triton`.

G queries, S rows, D feature.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from and_dist.method.partition import log_partition
from and_dist.method.partition_merge import Partition
from and_dist.method.partition_triton import (
    MOST_SHARES_AT_ONCE,
    Tiles,
    attend_to_share,
    merge_shares,
    run_kernels,
)
from benchmarks.device.compilation import (
    Variant,
    compile_variants,
    parse_kernel_arguments,
)
from benchmarks.device.exact import exact_partition, partition_errors, unit_rows
from benchmarks.device.partition_forms import Scene, forms_by_heads
from benchmarks.device.requirements import require_gpu

IMAGENET = 1_281_167
DIM = 128
TEMPERATURE = 0.07
FEW, MANY = 256, 4096
"""The queries of the batch of one GPU, and of the batches of sixteen GPUs."""
TILES = (
    Tiles(128, 128, 8, 3),
    Tiles(128, 64, 4, 3),
    Tiles(128, 64, 8, 4),
    Tiles(64, 128, 4, 3),
    Tiles(128, 128, 4, 2),
    Tiles(256, 64, 8, 3),
)
CHOSEN = (Tiles(128, 128, 8, 3), Tiles(128, 64, 8, 4), Tiles(64, 128, 4, 3))
"""Those that spill no register on sm_80, sm_90 and sm_100. On an H100 the last takes 0.355 ms for
256 queries over ImageNet's rows; Tiles(128, 64, 4, 3), which spills 72 bytes, takes 0.346 ms."""
SHARE_TYPES = {
    "queries_ptr": "*bf16",
    "rows_ptr": "*bf16",
    "log2_z_ptr": "*fp32",
    "mean_ptr": "*fp32",
    "num_queries": "i32",
    "num_rows": "i32",
    "rows_per_share": "i32",
    "scale_log2": "fp32",
}
MERGE_TYPES = {
    "log2_z_ptr": "*fp32",
    "mean_ptr": "*fp32",
    "log_z_out_ptr": "*fp32",
    "mean_out_ptr": "*fp32",
    "num_queries": "i32",
    "num_shares": "i32",
}


def partition(
    queries_GD: Tensor,
    rows_SD: Tensor,
    temperature: float,
    tiles: Tiles,
    shares_of_a_processor: int = 1,
    processors: int | None = None,
) -> Partition:
    """Return the partition by the kernel with some tiles."""
    given = (queries_GD, rows_SD, temperature, tiles, shares_of_a_processor, processors)
    return Partition(*run_kernels(*given))


def variants() -> Iterator[Variant]:
    """Yield the variants to compile: the kernel with every shape of tile, in bfloat16, and the
    merge."""
    for tiles in TILES:
        yield Variant(
            f"partition {tiles.name}",
            attend_to_share,
            SHARE_TYPES,
            {
                "D": DIM,
                "TILE_QUERIES": tiles.queries,
                "TILE_ROWS": tiles.rows,
                "STAGES": tiles.stages,
            },
            {"num_warps": tiles.warps, "num_stages": tiles.stages},
            is_chosen=tiles in CHOSEN,
        )
    constants = {"D": DIM, "SHARES": 128, "SHARES_AT_ONCE": MOST_SHARES_AT_ONCE}
    yield Variant(
        "merge of 128 shares", merge_shares, MERGE_TYPES, constants, {"num_warps": 4}, True
    )


# bfloat16 is not among them: the interpreter holds it as 16-bit integers, for which numpy has no
# other type, and its tl.dot would multiply the bit patterns.
CHECKS = (
    (256, 5000, torch.float32, 1e-4),
    (100, 4097, torch.float32, 1e-4),
    (1, 1, torch.float32, 1e-5),
    (37, 1000, torch.float16, 5e-3),
)


def check() -> int:
    """Compare with float64 under Triton's interpreter and return how many cases are wrong."""
    wrong = 0
    for num_queries, num_rows, dtype, tolerance in CHECKS:
        random = torch.Generator().manual_seed(0)
        queries_GD = unit_rows(num_queries, DIM, dtype, random)
        rows_SD = unit_rows(num_rows, DIM, dtype, random)
        found = partition(queries_GD, rows_SD, 0.1, Tiles(64, 64, 4, 1), processors=4)
        errors = partition_errors(found, exact_partition(queries_GD, rows_SD, 0.1))
        is_right = max(errors) < tolerance
        wrong += not is_right
        print(
            f"{num_queries:4} queries, {num_rows:5} rows, {dtype}: log Z is off by "
            f"{errors[0]:.1e}, the mean by {errors[1]:.1e}{'' if is_right else ' TOO MUCH'}"
        )
    return wrong


def time_forms(num_queries: int, num_rows: int) -> None:
    """Time log_partition, torch's operators and the kernel at some numbers of queries and rows."""
    random = torch.Generator("cuda").manual_seed(0)
    queries_GD = unit_rows(num_queries, DIM, torch.bfloat16, random)
    rows_SD = unit_rows(num_rows, DIM, torch.bfloat16, random)
    scene = Scene(queries_GD, rows_SD, exact_partition(queries_GD, rows_SD, TEMPERATURE))
    given = (queries_GD, rows_SD, TEMPERATURE)
    scene.time("and_dist.log_partition", partial(log_partition, *given))
    # Two blocks of 128 queries want many heads to fill 132 processors, and 32 blocks want few.
    for heads in (132, 264) if num_queries == FEW else (9, 8, 33):
        for name, form in forms_by_heads(*given, heads).items():
            scene.time(f"{name}, {heads} heads", form)
    for tiles in TILES if num_queries == FEW else TILES[:3]:
        for waves in (1, 2):
            name = f"triton {tiles.name}, {waves} shares a processor"
            scene.time(name, partial(partition, *given, tiles, waves))
    if num_queries == FEW:
        wide = (queries_GD.float(), rows_SD.float(), TEMPERATURE)
        scene.time("and_dist.log_partition, float32 bank", partial(log_partition, *wide))


def main() -> int:
    """Run one subcommand and return its exit code."""
    given = parse_kernel_arguments(__doc__, IMAGENET)
    if given.command == "compile":
        return int(compile_variants(variants(), given.architectures, given.cubins) > 0)
    if given.command == "check":
        return int(check() > 0)
    require_gpu()
    for num_queries in (FEW, MANY):
        time_forms(num_queries, given.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
