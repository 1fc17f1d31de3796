"""Compare log_partition with float64 on a GPU, in every type and for odd numbers of rows.

    python -m benchmarks.device.partition_accuracy [--device cpu]

Neither DALI nor faiss is needed. The command ends with exit code 1 if a result is too far off.
Shapes that the operators refuse, such as more features than they have a kernel for, are counted
apart.
"""

from __future__ import annotations

import argparse
import sys

import torch

from and_dist.method.partition import log_partition
from benchmarks.device.exact import exact_partition, partition_errors, unit_rows
from benchmarks.device.requirements import require_gpu

TEMPERATURE = 0.1
TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-3,
    torch.float16: 5e-3,
    torch.bfloat16: 3e-2,
}
SHAPES = (
    (1, 1, 128),
    (256, 200_001, 128),
    (100, 4097, 128),
    (2048, 50_001, 128),
    (48, 4097, 64),
    (256, 200_001, 256),
    (33, 9000, 512),
    (48, 4097, 100),
    (48, 300_001, 200),
)
"""Numbers of queries, rows and features."""


def judge(shape: tuple[int, int, int], dtype: torch.dtype, random: torch.Generator) -> str:
    """Compare one shape in one type, print a line, and return `right`, `wrong` or `refused`."""
    num_queries, num_rows, dim = shape
    name = f"{dtype!s:15} {num_queries:5} queries {num_rows:7} rows dim {dim:4}"
    queries_GD = unit_rows(num_queries, dim, dtype, random)
    rows_SD = unit_rows(num_rows, dim, dtype, random)
    try:
        found = log_partition(queries_GD, rows_SD, TEMPERATURE)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0][:120]
        print(f"{name}: refused {reason}", flush=True)
        return "refused"
    off, mean_off = partition_errors(found, exact_partition(queries_GD, rows_SD, TEMPERATURE))
    verdict = "right" if max(off, mean_off) < TOLERANCES[dtype] else "wrong"
    print(f"{name}: {verdict}, off {off:.1e} {mean_off:.1e}", flush=True)
    return verdict


def main() -> int:
    """Compare all shapes in all types and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    device = parser.parse_args().device
    if device == "cuda":
        require_gpu()
    random = torch.Generator(device).manual_seed(0)
    verdicts = [judge(shape, dtype, random) for dtype in TOLERANCES for shape in SHAPES]
    counts = {verdict: verdicts.count(verdict) for verdict in ("right", "wrong", "refused")}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return int(counts["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
