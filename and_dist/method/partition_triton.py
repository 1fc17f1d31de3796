"""Compute a partition by one Triton kernel, which reads a row once for both products, and a merge.

Each program takes one block of queries past one of W shares of the rows, so that few queries still
fill the GPU; a second kernel merges the shares. G queries, S rows, D feature, W shares; in a tile
T queries and U rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tiles(NamedTuple):
    """Hold the shape of a kernel's tile, and how many warps and pipeline stages work on it."""

    queries: int
    rows: int
    warps: int
    stages: int

    @property
    def name(self) -> str:
        """Return a name for log lines and files."""
        return f"{self.queries}x{self.rows}-warps{self.warps}-stages{self.stages}"


TILES = Tiles(64, 128, 4, 3)
"""The tiles that are used. They spill no register on sm_80, sm_90 and sm_100, and on an H100 take
0.355 ms for 256 queries over ImageNet's rows (benchmarks/device/partition_kernel.py has others)."""
SHARES_OF_A_PROCESSOR = 2
MOST_SHARES_AT_ONCE = 16
"""The number of shares whose means the merge reads at a time: 16 of 128 features fit registers."""
LN_2 = tl.constexpr(math.log(2))
HEADROOM = tl.constexpr(15.0)
"""The power of 2 by which weights are enlarged before they are rounded for the second product. The
largest is then 2^15, and float16, which ends at 2^16, keeps weights down to 2^-39 of it. Without,
it would end at 2^-24: millions of far rows would be lost from the mean, which together weigh."""


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
    # Weights are relative to the highest logit so far, less HEADROOM.
    base_T = tl.full([TILE_QUERIES], -float("inf"), tl.float32)
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
        new_base_T = tl.maximum(base_T, tl.max(logits_TU, 1) - HEADROOM)
        p_TU = tl.exp2(logits_TU - new_base_T[:, None])
        # The sums so far are relative to the old base. No share is empty, so after the first tile
        # the base is finite, and tiles wholly past the end add exact zeros.
        shrink_T = tl.exp2(base_T - new_base_T)
        total_T = total_T * shrink_T + tl.sum(p_TU, 1)
        sum_TD = sum_TD * shrink_T[:, None]
        sum_TD = tl.dot(p_TU.to(rows_UD.dtype), rows_UD, sum_TD)
        base_T = new_base_T
    out_T = share * num_queries + query_T
    tl.store(log2_z_ptr + out_T, base_T + tl.log2(total_T), mask=query_T < num_queries)
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


def run_kernels(
    queries_GD: Tensor,
    rows_SD: Tensor,
    temperature: float,
    tiles: Tiles = TILES,
    shares_of_a_processor: int = SHARES_OF_A_PROCESSOR,
    processors: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return log Z [G] and the mean [G, D] in float32, as log_partition does.

    Each of the GPU's processors gets about as many pairs of a block of queries and a share of rows
    as it is to have. D has to be a power of 2 and there has to be a row: an empty share would have
    no maximum.
    """
    (num_queries, dim), device = queries_GD.shape, queries_GD.device
    if processors is None:
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    blocks = triton.cdiv(num_queries, tiles.queries)
    most_shares = shares_of_a_processor * processors // blocks
    rows_per_share = _rows_per_share(len(rows_SD), most_shares, tiles.rows)
    shares = triton.cdiv(len(rows_SD), rows_per_share)
    log2_z_WG = torch.empty(shares, num_queries, device=device)
    mean_WGD = torch.empty(shares, num_queries, dim, device=device)
    attend_to_share[(blocks, shares)](
        queries_GD.to(rows_SD.dtype).contiguous(),
        rows_SD.contiguous(),
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


def _merge(log2_z_WG: Tensor, mean_WGD: Tensor) -> tuple[Tensor, Tensor]:
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
    return log_z_G, mean_GD


@torch.library.custom_op("and_dist::partition_by_triton", mutates_args=())
def partition_by_triton(
    queries_GD: Tensor, rows_SD: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return log Z [G] and the mean [G, D] of queries over rows of 16 bits."""
    return run_kernels(queries_GD, rows_SD, temperature)


@partition_by_triton.register_fake
def _(queries_GD: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    """Return tensors of the right shapes, for code that asks what an operator would make."""
    return (
        queries_GD.new_empty(queries_GD.shape[0], dtype=torch.float32),
        queries_GD.new_empty(queries_GD.shape, dtype=torch.float32),
    )
