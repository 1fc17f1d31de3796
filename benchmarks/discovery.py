"""Time one discovery with all rows anchors, k = 1, on features of a trained network.

    python -m benchmarks.discovery [--smoke] [--json FILE] [--run runs/demo] [--device cpu]

Compared are the published code's form, torch.topk in blocks, and ours with faiss Flat, with the
fused scan and with an inverted file, at several numbers of rows; recall_ivf is the share of nearest
neighbours that the inverted file finds. Equal results are asserted first. Then follow peak memory
beside the bank, the time by ranks, the effect of 16-bit banks and of approximation, and the work of
the coordinator alone. The features are those that the network of --run (`make demo`) computes of
newly drawn images. The floor is one product of every pair of rows, at the machine's own rate.

On a GPU rows are drawn instead unless a --run is given; the forms of others are compared up to
50,000 rows, and ours runs once at ImageNet's number of rows: all of it takes a minute.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from and_dist.distributed.world import World, open_world
from and_dist.method.curriculum import select_anchors
from and_dist.method.discovery import SearchOptions, discover
from and_dist.method.entropy import scan_pairs
from and_dist.method.memory_bank import MemoryBank, shard_range
from and_dist.method.neighbour_search import (
    RECALL,
    Approximate,
    ShardSearch,
    gather_sample,
    search_shards,
)
from and_dist.method.neighbour_table import Neighbourhoods, check_neighbours
from benchmarks.common.features import draw_classes, draw_features
from benchmarks.common.harness import Benchmark, add_arguments
from benchmarks.common.memory import extra_peak_mb

TEMPERATURE, DIM = 0.1, 128
MEMORY_BYTES = 200_000_000
SIZES = (10_000, 20_000, 50_000, 100_000)
SIZES_ON_GPU = (10_000, 50_000)
ROWS_SEARCHED = 65_536
"""The rows of ImageNet that are searched for on a GPU; the time grows with their number."""
RANKS = (1, 2, 4)
ROWS_BY_RANKS = 20_000
IMAGENET = 1_281_167
MOST_PUBLISHED = 100_000
"""The most rows for the forms of others, whose time grows with the square."""

Case = Callable[[], tuple[Tensor, Tensor]]


def published(bank_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return entropies [N] and neighbours [N, 1] in the published code's dense form.

    It takes blocks of its batch size, softmax, then log, and multiplies all pairs again for
    neighbours.
    """
    entropies, neighbours = [], []
    for block_QD in bank_ND.split(100):
        p_QN = (block_QD @ bank_ND.T / TEMPERATURE).softmax(dim=1)
        entropies.append(-(p_QN * p_QN.log()).sum(dim=1))
    for at, block_QD in enumerate(bank_ND.split(100)):
        similarity_QN = block_QD @ bank_ND.T
        own_Q = torch.arange(len(block_QD), device=bank_ND.device)
        similarity_QN[own_Q, 100 * at + own_Q] = -1
        neighbours.append(similarity_QN.topk(1, dim=1).indices)
    return torch.cat(entropies), torch.cat(neighbours)


def topk_in_blocks(bank_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return entropies [N] and neighbours [N, 1] by torch.topk, with one product for 1,024 rows."""
    entropies, neighbours = [], []
    for at, block_QD in enumerate(bank_ND.split(1024)):
        similarity_QN = block_QD @ bank_ND.T
        logits_QN = similarity_QN / TEMPERATURE
        log_z_Q = logits_QN.logsumexp(dim=1)
        weights_QN = (logits_QN - log_z_Q[:, None]).exp_()
        entropies.append(log_z_Q - (weights_QN * logits_QN).sum(dim=1))
        own_Q = torch.arange(len(block_QD), device=bank_ND.device)
        similarity_QN[own_Q, 1024 * at + own_Q] = -1
        neighbours.append(similarity_QN.topk(1, dim=1).indices)
    return torch.cat(entropies), torch.cat(neighbours)


def ours(bank_ND: Tensor, world: World, search: str) -> Neighbourhoods:
    """Return the neighbourhoods that discover() finds with all rows as anchors."""
    start, stop = shard_range(len(bank_ND), world.rank, world.size)
    bank = MemoryBank(bank_ND[start:stop], start, len(bank_ND), 0.5)
    # A GPU has the memory that discovery.memory_mb=auto chooses.
    options = SearchOptions(memory_bytes=MEMORY_BYTES if world.device.type == "cpu" else None)
    return discover(bank, world, 4, 4, 1, TEMPERATURE, search, options=options)


def search_alone(
    bank_ND: Tensor, world: World, search: str, most_queries: int | None = None
) -> Tensor:
    """Return nearest rows [Q, 1] of the first rows without entropies, to see how the search alone
    grows."""
    sample_QD = gather_sample(bank_ND, world)
    approximate = None if search == "Flat" else Approximate(search, RECALL, sample_QD)
    shard = ShardSearch(bank_ND, 0, 1, MEMORY_BYTES, approximate)
    queries_QD = bank_ND[:most_queries]
    rows_Q = torch.arange(len(queries_QD), device=bank_ND.device)
    blocks = zip(queries_QD.split(2048), rows_Q.split(2048), strict=True)
    return torch.cat([search_shards(shard, *block, world).rows_QK for block in blocks])


def inverted_file(num_rows: int) -> str:
    """Return the faiss index of about 4 sqrt(N) cells, rounded to a power of two."""
    return f"IVF{2 ** round(math.log2(4 * math.sqrt(num_rows)))},Flat"


def assert_equal(bank_ND: Tensor, world: World) -> dict[str, float]:
    """Assert that all exact forms agree with each other and with float64; return how closely."""
    flat, fused = ours(bank_ND, world, "Flat"), ours(bank_ND, world, "fused")
    assert torch.equal(flat.neighbours_NK, fused.neighbours_NK)
    assert torch.equal(flat.anchors_A, fused.anchors_A)
    wide_ND = bank_ND.double()
    bank = MemoryBank(wide_ND, 0, len(wide_ND), 0.5)
    exact_N = scan_pairs(bank, world, TEMPERATURE, MEMORY_BYTES).entropy_S
    for form in (published, topk_in_blocks):
        entropy_N, neighbours_NK = form(bank_ND)
        assert (entropy_N - exact_N).abs().max() < 1e-3
        differ = (neighbours_NK != flat.neighbours_NK).any(dim=1).nonzero().squeeze(1)
        ours_at, theirs_at = (
            (wide_ND[differ] * wide_ND[table[differ, 0]]).sum(dim=1)
            for table in (flat.neighbours_NK, neighbours_NK)
        )
        assert len(differ) == 0 or (ours_at - theirs_at).abs().max() < 1e-6
    error = (flat.entropy_N - exact_N).abs().max().item()
    half = len(bank_ND) // 2
    chosen, exact = (select_anchors(e, half) for e in (flat.entropy_N, exact_N))
    others = exact[~torch.isin(exact, chosen)]
    limit = exact_N[exact[-1]]
    gap = (exact_N[others] - limit).abs().max().item() if len(others) else 0.0
    return {"entropy_error": error, "other_anchors": len(others), "their_gap": gap}


def measure_sizes(
    benchmark: Benchmark, features_ND: Tensor, world: World, sizes: tuple[int, ...], repeats: int
) -> None:
    """Measure all forms at each number of rows, and the recall of the inverted file."""
    for size in sizes:
        bank_ND = features_ND[:size].contiguous()
        at, ivf = f"{size // 1000}k", inverted_file(size)
        if size <= 50_000:
            for name, figure in assert_equal(bank_ND, world).items():
                benchmark.facts[f"{name} at {at}"] = figure
        cases: dict[str, Callable[[], object]] = {
            f"published, {at}": lambda bank=bank_ND: published(bank),
            f"topk in blocks, {at}": lambda bank=bank_ND: topk_in_blocks(bank),
            f"Flat, {at}": lambda bank=bank_ND: ours(bank, world, "Flat"),
            f"fused, {at}": lambda bank=bank_ND: ours(bank, world, "fused"),
            f"IVF, {at}": lambda bank=bank_ND, ivf=ivf: ours(bank, world, ivf),
            f"Flat search alone, {at}": lambda bank=bank_ND: search_alone(bank, world, "Flat"),
            f"IVF search alone, {at}": lambda bank=bank_ND, ivf=ivf: search_alone(bank, world, ivf),
        }
        if (
            size > 50_000
        ):  # others take minutes each, so they run at most once, and ours three times
            slow = {name: cases.pop(name) for name in list(cases)[:2]}
            if size <= MOST_PUBLISHED:
                benchmark.measure(slow, 1, dict.fromkeys(slow, size), "rows", warm_up=0)
            repeats = min(repeats, 3)
        benchmark.measure(cases, repeats, dict.fromkeys(cases, size), "rows")
        exact, found = ours(bank_ND, world, "fused"), ours(bank_ND, world, ivf)
        share = (exact.neighbours_NK == found.neighbours_NK).double().mean().item()
        benchmark.facts[f"{ivf} at {at}"] = f"recall {share:.4f}, reported {found.recall:.4f}"
        benchmark.facts[f"recall at {at}"] = share
        assert torch.equal(exact.anchors_A, found.anchors_A)


def measure_imagenet(benchmark: Benchmark, bank_ND: Tensor, world: World) -> None:
    """Measure ours once at full size on a GPU, and the exact search for some of the rows."""
    at = f"{len(bank_ND) // 1000}k"
    few = min(ROWS_SEARCHED, len(bank_ND))
    whole, some = f"fused, {at}", f"Flat search for {few:,} rows, {at}"
    cases: dict[str, Callable[[], object]] = {
        whole: lambda: ours(bank_ND, world, "fused"),
        some: lambda: search_alone(bank_ND, world, "Flat", few),
    }
    benchmark.measure(cases, 1, {whole: len(bank_ND), some: few}, "rows", warm_up=0)


def add_ratios(benchmark: Benchmark, sizes: tuple[int, ...]) -> None:
    """Add ratios, floors, and the exponents with which times grow."""

    def seconds(name: str, size: int) -> float:
        return benchmark.result(f"{name}, {size // 1000}k").median_s

    promised = 50_000 if 50_000 in sizes else sizes[-1]
    at = f"{promised // 1000}k"
    for ratio, baseline, form in (
        ("published_flat", "published", "Flat"),
        ("published_best", "published", "fused"),
        ("published_ivf", "published", "IVF"),
        ("topk_in_blocks_best", "topk in blocks", "fused"),
    ):
        benchmark.ratio(ratio, f"{baseline}, {at}", f"{form}, {at}")
    benchmark.ratios["recall_ivf"] = benchmark.facts[f"recall at {at}"]
    add_floors(benchmark, promised)
    for name in ("published", "Flat", "fused", "Flat search alone", "IVF search alone"):
        measured = [size for size in sizes if name != "published" or size <= MOST_PUBLISHED]
        points = [(math.log(size), math.log(seconds(name, size))) for size in measured]
        benchmark.facts[f"exponent of {name}"] = round(slope(points), 2)


def add_floors(benchmark: Benchmark, size: int) -> None:
    """Add the ratios to the least time, in which every pair of rows is multiplied once."""
    gflop = 1e-9 * size**2 * DIM
    on = "gpu_" if benchmark.device == "cuda" else ""
    rate = benchmark.rates[f"{on}matrix_fp32_gflops"]
    for form in ("Flat", "fused", "IVF"):
        ours = f"{form}, {size // 1000}k"
        benchmark.floor(form.lower(), ours, gflop / rate, f"{gflop:,.1f} GFLOP, every pair once")


def slope(points: list[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line."""
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    above = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return above / sum((x - mean_x) ** 2 for x, _ in points)


def measure_16_bits(benchmark: Benchmark, bank_ND: Tensor, world: World) -> None:
    """Note how a bank in 16 bits changes the anchors of round 2 and the neighbours."""
    exact = ours(bank_ND, world, "fused")
    half = len(bank_ND) // 2
    for dtype in (torch.float16, torch.bfloat16):
        found = ours(bank_ND.to(dtype), world, "Flat")
        same = torch.isin(found.anchors_A[:half], exact.anchors_A[:half]).double().mean()
        near = (found.neighbours_NK == exact.neighbours_NK).double().mean()
        name = str(dtype).removeprefix("torch.")
        benchmark.facts[f"{name} bank, {len(bank_ND):,} rows"] = (
            f"{same:.2%} of half the rows as anchors, {near:.2%} of the neighbours are the same"
        )


def measure_coordinator(benchmark: Benchmark) -> None:
    """Measure the coordinator's own work at ImageNet's size, for which all other ranks wait."""
    entropy_N = torch.rand(IMAGENET, dtype=torch.float64)
    table_NK = torch.arange(1, IMAGENET + 1)[:, None] % IMAGENET

    def alone() -> None:
        anchors_A = select_anchors(entropy_N, IMAGENET)
        check_neighbours(table_NK[anchors_A], anchors_A, IMAGENET)

    benchmark.measure({"coordinator alone, 1.28M": alone}, 5, {"coordinator alone, 1.28M": 1}, "")


def in_processes(
    benchmark: Benchmark, features_ND: Tensor, sizes: tuple[int, ...], ranks: tuple[int, ...]
) -> None:
    """Measure the peak memory of each search in a process of its own, and the time by ranks."""
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            file = Path(folder) / f"{size}.pt"
            torch.save(features_ND[:size].clone(), file)
            for name in ("Flat", "fused", "IVF"):
                search = inverted_file(size) if name == "IVF" else name
                figures = run_workers(file, search, 1, os.cpu_count() or 1)
                benchmark.result(f"{name}, {size // 1000}k").peak_mb = figures["peak_mb"]
        size = min(ROWS_BY_RANKS, sizes[-1])
        file = Path(folder) / f"{size}.pt"
        torch.save(features_ND[:size].clone(), file)
        for search in ("Flat", "fused"):
            seconds = {}
            for count in ranks:
                repeats = run_workers(file, search, count, 1)["seconds"]
                name = f"{search}, {size // 1000}k, one thread on each of {count}"
                seconds[count] = benchmark.add(name, repeats, size, "rows").min_s
            benchmark.facts[f"{search}, {size // 1000}k rows, one thread a rank"] = ", ".join(
                f"{n} rank(s) {s:.2f} s ({seconds[1] / s:.2f}x)" for n, s in seconds.items()
            )


def run_workers(file: Path, search: str, ranks: int, threads: int) -> dict[str, Any]:
    """Return the figures that rank 0 of `ranks` workers reports."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        "-m",
        "benchmarks.discovery",
        "--worker",
        str(file),
        search,
        str(threads),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def work(file: str, search: str, threads: int) -> None:
    """Run as one rank: a small discovery to load everything, then the real one five times."""
    with open_world("cpu", threads) as world:
        bank_ND = torch.load(file, mmap=True)
        start, stop = shard_range(len(bank_ND), world.rank, world.size)
        bank = MemoryBank(bank_ND[start:stop].clone(), start, len(bank_ND), 0.5)
        small = "IVF16,Flat" if search.startswith("IVF") else search
        ours(bank_ND[:2000].clone(), world, small)

        def case() -> None:
            discover(
                bank,
                world,
                4,
                4,
                1,
                TEMPERATURE,
                search,
                options=SearchOptions(memory_bytes=MEMORY_BYTES),
            )

        peak, seconds = extra_peak_mb(case), []
        for _ in range(5):
            started = time.perf_counter()
            case()
            seconds.append(time.perf_counter() - started)
        if world.is_coordinator:
            print(json.dumps({"seconds": seconds, "peak_mb": peak}), flush=True)


def build_features(run: Path | None, is_smoke: bool, count: int, device: torch.device) -> Tensor:
    """Return [count, D] features of a trained run's network; drawn rows for a smoke test, and on a
    GPU if no run is given."""
    if run is None and (is_smoke or device.type == "cuda"):
        return draw_classes(count, DIM, 10, torch.Generator(device).manual_seed(0))[0]
    return draw_features(run or Path("runs/demo"), count).to(device)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument(
        "--run",
        type=Path,
        help="a trained run; runs/demo, and with --smoke or --device cuda none: rows are drawn",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.worker[0], given.worker[1], int(given.worker[2]))
        return
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no NVIDIA GPU here; the sizes up to 1.28M rows need one")
        return
    on_gpu = given.device == "cuda"
    sizes = (1000, 2000) if given.smoke else SIZES_ON_GPU if on_gpu else SIZES
    most = IMAGENET if on_gpu and not given.smoke else max(sizes)
    benchmark = Benchmark("discovery", given.device)
    with open_world(given.device) as world:
        features_ND = build_features(given.run, given.smoke, most, world.device)
        measure_sizes(benchmark, features_ND, world, sizes, given.repeats)
        add_ratios(benchmark, sizes)
        measure_16_bits(benchmark, features_ND[: sizes[1]].contiguous(), world)
        measure_coordinator(benchmark)
        if on_gpu:
            measure_imagenet(benchmark, features_ND, world)
    if not on_gpu:
        few = (sizes[-1:], RANKS[:2]) if given.smoke else (sizes, RANKS)
        in_processes(benchmark, features_ND, *few)
    benchmark.finish(given.json)


if __name__ == "__main__":
    main()
