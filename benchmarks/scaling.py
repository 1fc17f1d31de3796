"""Measure how the cost of a training step grows with rows and with ranks.

    python -m benchmarks.scaling [--smoke] [--json FILE]

The rows grow on one rank, beside the published form. The ranks grow with the same work in all, and
with the same work a rank. One rank of 64, 256 and 1,024 is simulated, whose others send the same as
it does, and its memory is measured part by part. A step is the trainer's without reading images and
updating weights; its bank is multiplied in float32. Equal results are asserted first.

X = 1 + D, the loss and the gradient.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import log
from typing import Any, NamedTuple

import numpy as np
import torch

from and_dist.distributed.world import open_world
from benchmarks.common import simulation
from benchmarks.common.harness import Benchmark, add_arguments
from benchmarks.common.memory import available_mb, extra_peak_mb
from benchmarks.common.one_rank import (
    DIM,
    assert_same,
    bytes_expected,
    expected_step,
    measure_rank,
    published_inputs,
    rank_of_world,
    result_of_step,
)
from benchmarks.common.peers import differentiate, published
from benchmarks.common.rank_pool import RankPool

QUERIES = 256
WORLDS = (1, 2, 4)
SIMULATED_WORLDS = (64, 256, 1024)
QUERIES_OF_A_RANK = 4
"""The queries of a simulated rank: few, since it answers those of all ranks."""
STEPS_OF_A_SIMULATED_RANK = 3
ROWS_OF_A_RANK = {"simulate_scan": 512, "simulate_search": 2048}
"""The rows of a rank in a simulated discovery: a block of the scan, and a block of the search."""
OURS, WHOLE, PUBLISHED = "the objective", "with `small`, 32 px", "published form"
SPARE_MB = 1500
"""The memory left for the program itself and one step."""
NOISE_MB = 16
"""The largest difference of memory that is taken for noise."""


class Sizes(NamedTuple):
    """Hold the numbers of rows that are measured."""

    rows: tuple[int, ...]
    most_published: int
    """The most rows for which the published form fits: it takes 4 matrices of queries by rows."""
    rows_by_worlds: int
    simulated_rows: tuple[int, ...]
    coordinator_rows: int


FULL = Sizes(
    (10_000, 100_000, 1_000_000, 10_000_000),
    1_000_000,
    200_000,
    (1_281_167, 100_000_000, 1_000_000_000),
    10_000_000,
)
SMOKE = Sizes((10_000, 30_000, 100_000), 100_000, 20_000, (1_281_167, 10_000_000), 1_000_000)


def measure_rows(num_rows: int, with_published: bool, repeats: int) -> dict[str, Any]:
    """Return seconds and memory of each case at one number of rows."""
    with open_world("cpu", threads=os.cpu_count()) as world:
        rank = rank_of_world(world, num_rows, QUERIES)
        whole = rank_of_world(world, num_rows, QUERIES, "small", rank.bank)
        cases: dict[str, Callable[[], object]] = {OURS: rank.step, WHOLE: whole.step}
        if with_published:
            inputs = published_inputs(rank)
            theirs_BX = differentiate(published, *inputs)  # before a step updates the bank
            assert_same(result_of_step(rank), theirs_BX)
            cases[PUBLISHED] = partial(differentiate, published, *inputs)
        seconds = Benchmark("rows").repeat(cases, repeats)
        peaks = {name: extra_peak_mb(case) for name, case in cases.items()}
    return {name: {"seconds": seconds[name], "peak_mb": peaks[name]} for name in cases}


def add_rows(benchmark: Benchmark, sizes: Sizes, repeats: int) -> None:
    """Add the results by rows on one rank; assert that a step's extra memory does not grow with
    rows."""
    medians: dict[str, list[tuple[int, float]]] = {OURS: [], WHOLE: [], PUBLISHED: []}
    peaks = []
    for num_rows in sizes.rows:
        if is_too_large(f"{num_rows:,} rows on one rank", 4 * DIM * num_rows):
            continue
        with_published = num_rows <= sizes.most_published
        found = in_process("measure_rows", num_rows, with_published, repeats)
        for name, figures in found.items():
            benchmark.add(f"{name}, {num_rows:,} rows", work=QUERIES, unit="queries", **figures)
            medians[name].append((num_rows, statistics.median(figures["seconds"])))
        peaks.append(found[OURS]["peak_mb"])
        if with_published:
            at = f"{num_rows:,} rows"
            benchmark.ratio(f"published at {at}", f"{PUBLISHED}, {at}", f"{OURS}, {at}")
    most, _ = medians[OURS][-1]
    least_s = 4e-9 * QUERIES * most * DIM / benchmark.rates["matrix_fp32_gflops"]
    benchmark.floor("rows", f"{OURS}, {most:,} rows", least_s, "two matrix products")
    for name, points in medians.items():
        benchmark.facts[f"{name}, seconds"] = describe_growth(points)
    assert max(peaks) < min(peaks) + NOISE_MB, f"a step's extra memory grows with rows: {peaks} MB"


def describe_growth(points: list[tuple[int, float]]) -> str:
    """Describe growth by the line a + b N with the least relative errors, and the exponents between
    sizes."""
    rows, seconds = np.array(points, dtype=float).T
    design = np.stack([1 / seconds, rows / seconds], axis=1)
    (constant, per_row), *_ = np.linalg.lstsq(design, np.ones(len(points)), rcond=None)
    off = np.abs((constant + per_row * rows) / seconds - 1).max()
    exponents = [
        f"{log(later[1] / earlier[1]) / log(later[0] / earlier[0]):.2f}"
        for earlier, later in pairwise(points)
    ]
    return (
        f"{constant * 1e3:.1f} ms + {per_row * 1e9:.1f} ms a million rows, within {off:.0%}; "
        f"exponents from size to size {', '.join(exponents)}"
    )


def add_worlds(benchmark: Benchmark, sizes: Sizes, repeats: int) -> None:
    """Add the results by ranks, with the same work in all worlds, then with work that grows with
    them.

    The ranks share the cores of this machine.
    """
    pool, most = RankPool(), max(WORLDS)
    try:
        for growth in ("strong", "weak"):
            for size in WORLDS:
                share = 1 if growth == "strong" else size / most
                work = int(sizes.rows_by_worlds * share), int(QUERIES * share)
                add_world(benchmark, pool, size, growth, work, repeats)
    finally:
        pool.close()
    cores = os.cpu_count() or 1
    benchmark.facts["ranks"] = f"a thread each; {most} of them share {cores} cores"
    for name in (OURS, WHOLE):
        for size in WORLDS[1:]:
            many = f"{name}, {size} ranks, strong"
            benchmark.ratio(f"1 rank over {many}", f"{name}, 1 rank, strong", many)


def add_world(
    benchmark: Benchmark,
    pool: RankPool,
    size: int,
    growth: str,
    work: tuple[int, int],
    repeats: int,
) -> None:
    """Add the results of one world; assert equal results and the expected traffic."""
    num_rows, batch = work
    (expected_GX,) = pool.run(1, expected_step, num_rows, batch)
    for name, encoder in ((OURS, ""), (WHOLE, "small")):
        found = pool.run(size, measure_rank, num_rows, batch, encoder, repeats)
        received = found[0]["received"]
        if not encoder:
            assert_same(torch.cat([of_rank["result_BX"] for of_rank in found]), expected_GX)
            assert received == bytes_expected(size, batch), received
        slowest = [max(times) for times in zip(*(f["seconds"] for f in found), strict=True)]
        wire = f"{received / 1e6:.3f} MB a rank, {found[0]['loopback'] / 1e6:.3f} over loopback"
        benchmark.add(
            f"{name}, {size} rank{'s' * (size > 1)}, {growth}",
            slowest,
            work=batch,
            unit="queries",
            peak_mb=max(f["peak_mb"] for f in found),
            notes=f"{num_rows:,} rows, {batch} queries, {wire}",
        )


def add_simulated(benchmark: Benchmark, sizes: Sizes, repeats: int) -> None:
    """Add the results of simulated ranks; assert that their memory does not grow with rows or
    world."""
    made: list[float] = []
    for size in SIMULATED_WORLDS:
        rests = []
        for num_rows in sizes.simulated_rows:
            name = f"rank of {size:,}, {num_rows:,} rows"
            dtype = choose_dtype(name, -(-num_rows // size) * DIM)
            if dtype is None:
                continue
            arguments = size, num_rows, QUERIES_OF_A_RANK, dtype, repeats
            found = in_process("simulate_training", *arguments)
            rests.append(found["rest_mb"])
            if dtype == "float32":
                made.append(found["made_bytes_a_query"])
            queries = size * QUERIES_OF_A_RANK
            benchmark.add(
                name,
                found["seconds"],
                work=queries,
                unit="queries",
                peak_mb=found["rest_mb"],
                notes=f"shard {found['shard_mb']:,.0f} MB in {dtype}, table "
                f"{found['table_mb']:,.0f} MB counted",
            )
            benchmark.facts[f"largest tensor of a step, {size:,} ranks"] = found["largest"]
        grown = max(rests, default=0) - min(rests, default=0)
        assert grown < NOISE_MB, f"a rank of {size} holds more with more rows: {rests} MB"
    assert max(made) < 1.02 * min(made), f"bytes a query grow with the world: {made}"
    benchmark.facts["tensors of a step, whatever the world"] = f"{max(made):,.0f} bytes a query"


def add_discovery(benchmark: Benchmark, sizes: Sizes) -> None:
    """Note the memory of a simulated discovery: blocks by ranks, and the tensors of N rows."""
    for function, rows in ROWS_OF_A_RANK.items():
        peaks = [in_process(function, size, rows)["rest_mb"] for size in SIMULATED_WORLDS]
        of_worlds = zip(SIMULATED_WORLDS, peaks, strict=True)
        figures = (f"{peak:,.0f} MB at {size:,}" for size, peak in of_worlds)
        benchmark.facts[f"{function.replace('_', ' ')}, a block, by ranks"] = ", ".join(figures)
    grows = in_process("lines_that_grow_with_rows", (4, 8), 3000)
    benchmark.facts["tensors of N rows in a discovery, bytes a row by line"] = grows
    held = in_process("simulate_coordinator", sizes.coordinator_rows)
    for what, figure in held.items():
        benchmark.facts[f"rank 0 {what}"] = f"{figure:.1f} bytes a row"


def choose_dtype(name: str, elements: int) -> str | None:
    """Return the widest type that this machine has memory for; print a message and return None if
    none."""
    for dtype, width in (("float32", 4), ("float16", 2)):
        if width * elements / 1e6 + SPARE_MB < available_mb():
            return dtype
    is_too_large(name, 2 * elements)
    return None


def is_too_large(name: str, num_bytes: int) -> bool:
    """Return whether the machine has too little memory for a case, and print a message if so."""
    needed = num_bytes / 1e6 + SPARE_MB
    if needed < available_mb():
        return False
    print(f"{name}: left out, {needed:,.0f} MB are needed and {available_mb():,.0f} are available")
    return True


WORKS: dict[str, Callable[..., Any]] = {
    "measure_rows": measure_rows,
    **{
        function.__name__: function
        for function in (
            simulation.simulate_training,
            simulation.simulate_scan,
            simulation.simulate_search,
            simulation.lines_that_grow_with_rows,
            simulation.simulate_coordinator,
        )
    },
}


def in_process(work: str, *arguments: Any) -> Any:
    """Run one of WORKS in a new process, so that no memory of an earlier case is left in it."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--worker", work, json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count())}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    print(f"{work}{arguments} is done", flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work, arguments = given.worker
        print(json.dumps(WORKS[work](*json.loads(arguments))))
        return
    sizes = SMOKE if given.smoke else FULL
    benchmark = Benchmark("scaling")
    add_rows(benchmark, sizes, given.repeats)
    add_worlds(benchmark, sizes, given.repeats)
    add_simulated(benchmark, sizes, min(given.repeats, STEPS_OF_A_SIMULATED_RANK))
    add_discovery(benchmark, sizes)
    benchmark.finish(given.json)


if __name__ == "__main__":
    main()
