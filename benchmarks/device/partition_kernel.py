"""Compute log Z and the softmax mean of queries over rows by one Triton kernel and a merge.

    python -m benchmarks.device.partition_kernel compile [--architectures 80 90] [--cubins FOLDER]
    TRITON_INTERPRET=1 python -m benchmarks.device.partition_kernel check
    python -m benchmarks.device.partition_kernel time [--rows N]

`compile` needs no GPU and ends with exit code 1 if a variant does not compile. `check` compares
with float64 on a CPU. `time` needs a GPU and times the kernel beside log_partition and torch's
attention operators. The kernel is a prototype: nothing in and_dist uses it.

Each program takes one block of queries past one of W shares of the rows, so that few queries still
fill the GPU; a second kernel merges the shares. G queries, S rows, D feature, W shares; in a tile
T queries and U rows.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from and_dist.method.partition import log_partition
from and_dist.method.partition_merge import Partition
from benchmarks.device.compilation import (
    Tiles,
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
MOST_SHARES_AT_ONCE = 16
"""The number of shares whose means the merge reads at a time: 16 of 128 features fit registers."""
LN_2 = tl.constexpr(math.log(2))


@triton.jit
def attend_to_share(
    queries_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    log2_z_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    num_queries: int,
    num_rows: int,
    rows_per_share: int,
    scale_log2: float,
    D: tl.constexpr,
    TILE_QUERIES: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Write log2 Z and the mean of one block of queries over one share of the rows."""
    block, share = tl.program_id(0), tl.program_id(1)
    query_T = block * TILE_QUERIES + tl.arange(0, TILE_QUERIES)
    feature_D = tl.arange(0, D)
    queries_TD = tl.load(
        queries_ptr + query_T[:, None] * D + feature_D[None, :],
        mask=query_T[:, None] < num_queries,
        other=0.0,
    )
    # Rows are counted in 64 bits: 17 million rows of 128 features pass 2^31 elements.
    first = share.to(tl.int64) * rows_per_share
    last = tl.minimum(first + rows_per_share, num_rows)
    highest_T = tl.full([TILE_QUERIES], -float("inf"), tl.float32)
    total_T = tl.zeros([TILE_QUERIES], tl.float32)
    sum_TD = tl.zeros([TILE_QUERIES, D], tl.float32)
    row_of_tile_U = tl.arange(0, TILE_ROWS)
    for at in tl.range(0, rows_per_share, TILE_ROWS, num_stages=STAGES):
        row_U = first + at + row_of_tile_U
        # K = V: the tile is loaded once and serves both products; attention reads two.
        rows_UD = tl.load(
            rows_ptr + row_U[:, None] * D + feature_D[None, :],
            mask=row_U[:, None] < last,
            other=0.0,
        )
        # scale_log2 is log2(e) / temperature: logits in base 2 need exp2 alone, which is one
        # instruction, where exp is this instruction and a multiplication.
        logits_TU = tl.dot(queries_TD, tl.trans(rows_UD)) * scale_log2
        # Rows past the end were loaded as zeros, whose logit of 0 would count.
        logits_TU = tl.where(row_U[None, :] < last, logits_TU, -float("inf"))
        new_highest_T = tl.maximum(highest_T, tl.max(logits_TU, 1))
        p_TU = tl.exp2(logits_TU - new_highest_T[:, None])
        # The sums so far are relative to the old maximum. No share is empty, so after the first
        # tile the maximum is finite, and tiles wholly past the end add exact zeros.
        shrink_T = tl.exp2(highest_T - new_highest_T)
        total_T = total_T * shrink_T + tl.sum(p_TU, 1)
        sum_TD = sum_TD * shrink_T[:, None]
        sum_TD = tl.dot(p_TU.to(rows_UD.dtype), rows_UD, sum_TD)
        highest_T = new_highest_T
    out_T = share * num_queries + query_T
    tl.store(log2_z_ptr + out_T, highest_T + tl.log2(total_T), mask=query_T < num_queries)
    tl.store(
        mean_ptr + out_T[:, None].to(tl.int64) * D + feature_D[None, :],
        sum_TD / total_T[:, None],
        mask=query_T[:, None] < num_queries,
    )


@triton.jit
def merge_shares(
    log2_z_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    log_z_out_ptr: tl.tensor,
    mean_out_ptr: tl.tensor,
    num_queries: int,
    num_shares: int,
    D: tl.constexpr,
    SHARES: tl.constexpr,
    SHARES_AT_ONCE: tl.constexpr,
) -> None:
    """Write log Z and the mean of one query over all shares, weighted by their share of Z.

    SHARES is num_shares rounded up to a power of 2, as tl.arange wants it; a share that is none has
    log2 Z of -inf, thus weight 0.
    """
    query = tl.program_id(0)
    share_W = tl.arange(0, SHARES)
    log2_z_W = tl.load(
        log2_z_ptr + share_W * num_queries + query, mask=share_W < num_shares, other=-float("inf")
    )
    highest = tl.max(log2_z_W, 0)
    log2_z = highest + tl.log2(tl.sum(tl.exp2(log2_z_W - highest), 0))
    feature_D = tl.arange(0, D)
    sum_D = tl.zeros([D], tl.float32)
    for at in range(0, SHARES, SHARES_AT_ONCE):
        some_W = at + tl.arange(0, SHARES_AT_ONCE)
        part_W = tl.load(
            log2_z_ptr + some_W * num_queries + query,
            mask=some_W < num_shares,
            other=-float("inf"),
        )
        place_W1 = (some_W[:, None] * num_queries + query).to(tl.int64)
        mean_WD = tl.load(
            mean_ptr + place_W1 * D + feature_D[None, :],
            mask=some_W[:, None] < num_shares,
            other=0.0,
        )
        sum_D += tl.sum(mean_WD * tl.exp2(part_W - log2_z)[:, None], 0)
    tl.store(log_z_out_ptr + query, log2_z * LN_2)
    tl.store(mean_out_ptr + query * D + feature_D, sum_D)


def partition(
    queries_GD: Tensor,
    rows_SD: Tensor,
    temperature: float,
    tiles: Tiles = TILES[0],
    waves: int = 1,
    processors: int | None = None,
) -> Partition:
    """Return the partition, [G] and [G, D] in float32, as log_partition does.

    Each of the GPU's processors gets about `waves` pairs of a block of queries and a share of rows.
    D has to be a power of 2 and there has to be a row: an empty share would have no maximum.
    """
    (num_queries, dim), device = queries_GD.shape, queries_GD.device
    if processors is None:
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    blocks = triton.cdiv(num_queries, tiles.queries)
    rows_per_share = _rows_per_share(len(rows_SD), waves * processors // blocks, tiles.rows)
    shares = triton.cdiv(len(rows_SD), rows_per_share)
    log2_z_WG = torch.empty(shares, num_queries, device=device)
    mean_WGD = torch.empty(shares, num_queries, dim, device=device)
    attend_to_share[(blocks, shares)](
        queries_GD.to(rows_SD.dtype),
        rows_SD,
        log2_z_WG,
        mean_WGD,
        num_queries,
        len(rows_SD),
        rows_per_share,
        math.log2(math.e) / temperature,
        dim,
        tiles.queries,
        tiles.rows,
        tiles.stages,
        num_warps=tiles.warps,
    )
    return _merge(log2_z_WG, mean_WGD)


def _rows_per_share(num_rows: int, most_shares: int, tile_rows: int) -> int:
    """Return the length of a share in whole tiles; only the last share may be shorter."""
    shares = max(1, min(most_shares, triton.cdiv(num_rows, tile_rows)))
    return triton.cdiv(triton.cdiv(num_rows, shares), tile_rows) * tile_rows


def _merge(log2_z_WG: Tensor, mean_WGD: Tensor) -> Partition:
    """Return the partition over all shares."""
    shares, num_queries, dim = mean_WGD.shape
    log_z_G = mean_WGD.new_empty(num_queries)
    mean_GD = mean_WGD.new_empty(num_queries, dim)
    rounded_up = triton.next_power_of_2(shares)
    merge_shares[(num_queries,)](
        log2_z_WG,
        mean_WGD,
        log_z_G,
        mean_GD,
        num_queries,
        shares,
        dim,
        rounded_up,
        min(MOST_SHARES_AT_ONCE, rounded_up),
        num_warps=4,
    )
    return Partition(log_z_G, mean_GD)


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
