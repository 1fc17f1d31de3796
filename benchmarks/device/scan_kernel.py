"""Scan all pairs of bank rows by one Triton kernel that keeps no tile of logits in memory.

    python -m benchmarks.device.scan_kernel compile [--architectures 80 90] [--cubins FOLDER]
    TRITON_INTERPRET=1 python -m benchmarks.device.scan_kernel check
    python -m benchmarks.device.scan_kernel time [--rows N]

`compile` needs no GPU and ends with exit code 1 if a variant does not compile. `check` compares
with float64 on a CPU. `time` needs a GPU. The kernel is a prototype: nothing in and_dist uses it;
and_dist.method.entropy does the same by matrix products.

Each program holds T rows and streams all others past them, in one of W shares. It keeps for each of
its rows z = sum 2^l and zl = sum l 2^l, which give the entropy (Eq. 5), and, element by element,
the best logit of each of U pieces of the share, those rows that are alike modulo U. The nearest row
is the best of its piece, so it is found for certain; the second nearest is missed where it lies in
the same piece of the same share. N all rows, Q rows of one launch, D feature, W shares, C
candidates; in a tile T rows and U others.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from and_dist.method.partition_kernels import LEAST_TEMPERATURE
from and_dist.method.partition_triton import Tiles
from benchmarks.device.compilation import (
    Variant,
    compile_variants,
    parse_kernel_arguments,
)
from benchmarks.device.exact import exact_entropy, exact_nearest, unit_rows
from benchmarks.device.requirements import require_gpu

IMAGENET = 1_281_167
DIM = 128
TEMPERATURE = 0.1
ROWS_TIMED = 2**17
ROWS_COMPARED = 20_000
NUM_CANDIDATES = 2
TILES = (
    Tiles(128, 64, 8, 3),
    Tiles(128, 128, 8, 3),
    Tiles(64, 64, 4, 3),
    Tiles(256, 64, 8, 2),
    Tiles(128, 64, 8, 2),
    Tiles(64, 64, 4, 2),
    Tiles(128, 32, 8, 3),
)
CHOSEN = (Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 3))
"""Those that spill no register on sm_80, sm_90 and sm_100, in bfloat16 and in TF32. In three TF32
products a pair every shape spills on sm_80 or sm_100."""


@triton.jit
def scan_share(
    rows_ptr: tl.tensor,
    others_ptr: tl.tensor,
    z_ptr: tl.tensor,
    zl_ptr: tl.tensor,
    best_ptr: tl.tensor,
    best_row_ptr: tl.tensor,
    num_rows: int,
    num_others: int,
    others_per_share: int,
    first_row: int,
    scale_log2: float,
    D: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_OTHERS: tl.constexpr,
    SEARCH: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Write both sums, and the best of every piece, of one block of rows over one share.

    `first_row` is the row id of the first of the rows; others are counted from row 0.
    """
    block, share = tl.program_id(0), tl.program_id(1)
    row_T = block * TILE_ROWS + tl.arange(0, TILE_ROWS)
    feature_D = tl.arange(0, D)
    rows_TD = tl.load(
        rows_ptr + row_T[:, None].to(tl.int64) * D + feature_D[None, :],
        mask=row_T[:, None] < num_rows,
        other=0.0,
    )
    z_T = tl.zeros([TILE_ROWS], tl.float32)
    zl_T = tl.zeros([TILE_ROWS], tl.float32)
    best_TU = tl.full([TILE_ROWS, TILE_OTHERS], -float("inf"), tl.float32)
    best_row_TU = tl.full([TILE_ROWS, TILE_OTHERS], -1, tl.int32)
    first = share * others_per_share
    last = tl.minimum(first + others_per_share, num_others)
    other_of_tile_U = tl.arange(0, TILE_OTHERS)
    for at in range(0, others_per_share, TILE_OTHERS):
        other_U = first + at + other_of_tile_U
        others_UD = tl.load(
            others_ptr + other_U[:, None].to(tl.int64) * D + feature_D[None, :],
            mask=other_U[:, None] < last,
            other=0.0,
        )
        # Unit rows have no logit above scale_log2. Minus this fixed maximum all exponents are at
        # most 0, so no running maximum is kept and nothing is rescaled. Opposite rows have
        # 2^(-2 scale_log2), which float32 holds from temperature 0.05 on.
        products_TU = tl.dot(rows_TD, tl.trans(others_UD), input_precision=PRECISION)
        logits_TU = products_TU * scale_log2 - scale_log2
        # Others past the end were loaded as zeros, whose logit would count.
        is_other_1U = other_U[None, :] < last
        logits_TU = tl.where(is_other_1U, logits_TU, -float("inf"))
        p_TU = tl.exp2(logits_TU)
        z_T += tl.sum(p_TU, 1)
        # 0 * -inf is NaN, so others past the end are masked again here.
        zl_T += tl.sum(tl.where(is_other_1U, p_TU * logits_TU, 0.0), 1)
        if SEARCH:
            # A row is no neighbour of itself. It is recognised by its id, since a duplicate has
            # the same similarity.
            is_own_TU = other_U[None, :] == row_T[:, None] + first_row
            candidates_TU = tl.where(is_own_TU, -float("inf"), logits_TU)
            is_better_TU = candidates_TU > best_TU
            best_TU = tl.where(is_better_TU, candidates_TU, best_TU)
            best_row_TU = tl.where(is_better_TU, other_U[None, :], best_row_TU)
    out_T = share.to(tl.int64) * num_rows + row_T
    tl.store(z_ptr + out_T, z_T, mask=row_T < num_rows)
    tl.store(zl_ptr + out_T, zl_T, mask=row_T < num_rows)
    if SEARCH:
        out_TU = out_T[:, None] * TILE_OTHERS + other_of_tile_U[None, :]
        tl.store(best_ptr + out_TU, best_TU, mask=row_T[:, None] < num_rows)
        tl.store(best_row_ptr + out_TU, best_row_TU, mask=row_T[:, None] < num_rows)


class Scan(NamedTuple):
    """Hold the entropy of every row and its nearest others, best first; C is 0 without search."""

    entropy_N: Tensor
    """Entropies in float64."""
    similarity_NC: Tensor
    rows_NC: Tensor


@dataclass(frozen=True)
class Launch:
    """Describe how a bank is scanned: tiles, precision of products, and how it is cut."""

    tiles: Tiles = TILES[0]
    precision: str = "tf32"
    """Precision of products in float32: `tf32`, `tf32x3` for three of them, `ieee` under the
    interpreter."""
    shares: int = 1
    is_search: bool = True
    rows_at_once: int = 2**17
    """Rows of one launch, which bounds the memory for the best of every piece."""


def scan(bank_ND: Tensor, temperature: float, launch: Launch | None = None) -> Scan:
    """Return entropy and candidates of all rows of a bank of unit rows; D is a power of 2."""
    assert temperature >= LEAST_TEMPERATURE
    launch = launch or Launch()
    parts = [
        _scan_rows(bank_ND, first_row, temperature, launch)
        for first_row in range(0, len(bank_ND), launch.rows_at_once)
    ]
    return Scan(*(torch.cat(pieces) for pieces in zip(*parts, strict=True)))


def _scan_rows(bank_ND: Tensor, first_row: int, temperature: float, launch: Launch) -> Scan:
    """Scan the rows of one launch past the whole bank."""
    tiles, shares, device = launch.tiles, launch.shares, bank_ND.device
    rows_QD = bank_ND[first_row : first_row + launch.rows_at_once]
    num_others, num_rows = len(bank_ND), len(rows_QD)
    others_per_share = triton.cdiv(triton.cdiv(num_others, shares), tiles.rows) * tiles.rows
    z_WQ = torch.empty(shares, num_rows, device=device)
    zl_WQ = torch.empty(shares, num_rows, device=device)
    pieces = (
        (shares, num_rows, tiles.rows) if launch.is_search else (0,)
    )  # without the search the kernel does not write them
    best_WQU = torch.empty(pieces, device=device)
    best_row_WQU = torch.empty(pieces, device=device, dtype=torch.int32)
    scan_share[(triton.cdiv(num_rows, tiles.queries), shares)](
        rows_QD,
        bank_ND,
        z_WQ,
        zl_WQ,
        best_WQU,
        best_row_WQU,
        num_rows,
        num_others,
        others_per_share,
        first_row,
        math.log2(math.e) / temperature,
        bank_ND.shape[1],
        tiles.queries,
        tiles.rows,
        launch.is_search,
        launch.precision,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    entropy_Q = _entropy(z_WQ, zl_WQ)
    if not launch.is_search:
        return Scan(entropy_Q, z_WQ.new_empty(num_rows, 0), best_row_WQU.view(num_rows, 0))
    top_QC, place_QC = best_WQU.movedim(0, 1).flatten(1).topk(NUM_CANDIDATES, dim=1)
    rows_QC = best_row_WQU.movedim(0, 1).flatten(1).gather(1, place_QC)
    similarity_QC = 1 + top_QC * temperature * math.log(2)
    return Scan(entropy_Q, similarity_QC, rows_QC)


def _entropy(z_WQ: Tensor, zl_WQ: Tensor) -> Tensor:
    """Return log z - zl / z over all shares, in natural logarithms.

    Both sums are relative to the same fixed maximum in every share, so shares are added as they
    are; and entropy does not change with a shift of all logits.
    """
    z_Q, zl_Q = z_WQ.double().sum(dim=0), zl_WQ.double().sum(dim=0)
    return z_Q.log() - math.log(2) * zl_Q / z_Q


def types_of(kind: str) -> dict[str, str]:
    """Return the types of the parameters of scan_share for rows of one type."""
    return {
        "rows_ptr": f"*{kind}",
        "others_ptr": f"*{kind}",
        "z_ptr": "*fp32",
        "zl_ptr": "*fp32",
        "best_ptr": "*fp32",
        "best_row_ptr": "*i32",
        "num_rows": "i32",
        "num_others": "i32",
        "others_per_share": "i32",
        "first_row": "i32",
        "scale_log2": "fp32",
    }


def variants() -> Iterator[Variant]:
    """Yield the variants to compile: every shape of tile in three arithmetics, with the search."""
    for tiles in TILES:
        for kind, precision in (("fp32", "tf32"), ("fp32", "tf32x3"), ("bf16", "tf32")):
            shape = {"D": DIM, "TILE_ROWS": tiles.queries, "TILE_OTHERS": tiles.rows}
            yield Variant(
                f"scan {tiles.name} {kind} {precision}",
                scan_share,
                types_of(kind),
                {**shape, "SEARCH": True, "PRECISION": precision},
                {"num_warps": tiles.warps, "num_stages": tiles.stages},
                is_chosen=tiles in CHOSEN and precision == "tf32",
            )


def check() -> int:
    """Compare with float64 under Triton's interpreter and return how many results are wrong.

    The rows are of float32: the interpreter holds bfloat16 as 16-bit integers, for which numpy has
    no other type, and its tl.dot would multiply the bit patterns.
    """
    random = torch.Generator().manual_seed(0)
    bank_ND = unit_rows(1000, DIM, torch.float32, random)
    launch = Launch(Tiles(64, 64, 4, 1), "ieee", shares=3, rows_at_once=700)
    found = scan(bank_ND, TEMPERATURE, launch)
    error = (found.entropy_N - exact_entropy(bank_ND, TEMPERATURE)).abs().max().item()
    same = (found.rows_NC[:, 0] == exact_nearest(bank_ND)).double().mean().item()
    print(f"entropy is off by {error:.1e}; {same:.2%} of the nearest rows are the same")
    return int(error >= 1e-4) + int(same < 1)


TIMED = (
    (Tiles(128, 64, 8, 3), torch.bfloat16, "tf32"),
    (Tiles(64, 64, 4, 3), torch.bfloat16, "tf32"),
    (Tiles(128, 64, 8, 3), torch.float32, "tf32"),
    (Tiles(64, 64, 4, 2), torch.float32, "tf32x3"),
    (Tiles(128, 32, 8, 3), torch.float32, "tf32x3"),
    (Tiles(64, 64, 4, 3), torch.float32, "tf32"),
    (Tiles(128, 128, 8, 3), torch.bfloat16, "tf32"),
)
"""The launches that are timed, whose shared memory fits an H100."""


def time_scans(num_rows: int) -> None:
    """Print for each launch its time, the time extrapolated to ImageNet by the square, and its
    errors."""
    bank_ND = unit_rows(num_rows, DIM, torch.float32, torch.Generator("cuda").manual_seed(0))
    few_ND = bank_ND[:ROWS_COMPARED]
    entropy_N, nearest_N = exact_entropy(few_ND, TEMPERATURE), exact_nearest(few_ND)
    for tiles, dtype, precision in TIMED:
        name = f"scan {tiles.name} {str(dtype).removeprefix('torch.')} {precision}"
        launch, rows_ND = Launch(tiles, precision), bank_ND.to(dtype)
        try:
            found = scan(few_ND.to(dtype), TEMPERATURE, launch)
            milliseconds = triton.testing.do_bench(
                partial(scan, rows_ND, TEMPERATURE, launch),
                warmup=10,
                rep=200,
                return_mode="median",
            )
        except Exception as error:  # a launch that this GPU refuses must not end the others
            reason = str(error).partition("\n")[0][:150]
            print(f"{name} FAILS {type(error).__name__} {reason}", flush=True)
            continue
        entropy_error = (found.entropy_N - entropy_N).abs().max().item()
        same = (found.rows_NC[:, 0] == nearest_N).double().mean().item()
        of_imagenet_s = milliseconds / 1e3 * (IMAGENET / num_rows) ** 2
        print(
            f"{name}: {num_rows:,} rows {milliseconds:.1f} ms; of {IMAGENET:,}: "
            f"{of_imagenet_s:.2f} s; entropy off {entropy_error:.1e}, nearest the same {same:.5f}",
            flush=True,
        )


def main() -> int:
    """Run one subcommand and return its exit code."""
    given = parse_kernel_arguments(__doc__, ROWS_TIMED)
    if given.command == "compile":
        return int(compile_variants(variants(), given.architectures, given.cubins) > 0)
    if given.command == "check":
        return int(check() > 0)
    require_gpu()
    time_scans(given.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
