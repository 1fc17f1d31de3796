"""Time loss and gradient of one batch of instances over a whole bank of ImageNet's size.

    python -m benchmarks.partition [--smoke] [--json FILE] [--device cpu]

Compared are the published code's form, F.cross_entropy, the same compiled, Cut Cross-Entropy where
it is installed, and ours, in 32 and in 16 bits; the floor is two bare matrix products. Then two
ranks with half the bank each are compared with materialised logits that are sharded as Partial-FC
shards a classifier. Equal results are asserted first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from and_dist.distributed.collectives import gather_batch
from and_dist.distributed.world import World, open_world
from and_dist.method.loss import neighbourhood_nll
from and_dist.method.memory_bank import MemoryBank, shard_range
from and_dist.method.partition_kernels import ROWS_PER_BLOCK
from benchmarks.common.harness import Benchmark, add_arguments
from benchmarks.common.memory import extra_peak_mb
from benchmarks.common.peers import TEMPERATURE, Step, differentiate, eager, published

QUERIES, DIM = 256, 128
IMAGENET, SMOKE = 1_281_167, 100_001  # odd, so that the shards of two ranks differ in length
ROWS_COMPARED = 50_000
ROWS_PER_BLOCK_ON_GPU = 2**20
"""The rows of a block of the floor on a GPU, so many that it does not wait for launches."""
CUT = "Cut Cross-Entropy"


def cut(features_BD: Tensor, rows_B: Tensor, bank_ND: Tensor) -> Tensor:
    """Return the loss by Cut Cross-Entropy, if it is installed: its form for CPUs, or its GPU
    kernel."""
    from cut_cross_entropy import linear_cross_entropy

    form = "torch_compile" if bank_ND.device.type == "cpu" else "cce"
    loss: Tensor = linear_cross_entropy(
        (features_BD / TEMPERATURE).to(bank_ND.dtype), bank_ND, rows_B, impl=form
    )
    return loss


def ours(
    features_BD: Tensor, rows_B: Tensor, bank_ND: Tensor, *, world: World, products: torch.dtype
) -> Tensor:
    """Return the loss by our partition over a bank on one rank."""
    bank = MemoryBank(bank_ND, 0, len(bank_ND), 0.5, products=products)
    none_B1 = torch.full((len(rows_B), 1), -1, device=rows_B.device)
    return neighbourhood_nll(features_BD, rows_B, none_B1, bank, world, TEMPERATURE)


def two_products(features_BD: Tensor, bank_ND: Tensor) -> Tensor:
    """Compute the floor: the similarities, and as many operations again for the gradient, by
    blocks."""
    features_BD = features_BD.to(bank_ND.dtype)
    sum_BD = torch.zeros_like(features_BD)
    rows = ROWS_PER_BLOCK if bank_ND.device.type == "cpu" else ROWS_PER_BLOCK_ON_GPU
    for block_TD in bank_ND.split(rows):
        sum_BD.addmm_(features_BD @ block_TD.T, block_TD)
    return sum_BD


def make_scene(num_rows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return features near rows of their own, as in training, with these rows' ids and the bank."""
    random = torch.Generator(device).manual_seed(0)
    draw = partial(torch.randn, generator=random, device=device)
    bank_ND = functional.normalize(draw(num_rows, DIM), dim=1)
    rows_B = torch.randperm(num_rows, generator=random, device=device)[:QUERIES]
    noise_BD = 0.05 * draw(QUERIES, DIM)
    return functional.normalize(bank_ND[rows_B] + noise_BD, dim=1), rows_B, bank_ND


def assert_equal(steps: dict[str, Step], scene: tuple[Tensor, Tensor, Tensor]) -> dict[str, str]:
    """Assert that all forms agree with float64, as far as their type allows; return their
    errors."""
    features_BD, rows_B, bank_ND = scene
    exact = differentiate(eager, features_BD.double(), rows_B, bank_ND.double())
    errors = {}
    for name, step in steps.items():
        found = differentiate(step, features_BD, rows_B, bank_ND)
        loss = (found[0, 0] - exact[0, 0]).abs().item()
        gradient = ((found - exact)[:, 1:].norm() / exact[:, 1:].norm()).item()
        is_narrow = "16" in name
        assert loss < (0.01 if is_narrow else 1e-4), f"{name}: the loss is {loss} off"
        assert gradient < (0.05 if is_narrow else 1e-3), f"{name}: the gradient is {gradient} off"
        errors[f"{name} is off by"] = f"{loss:.1e} in the loss, {gradient:.1e} of the gradient"
    return errors


def measure(benchmark: Benchmark, num_rows: int, repeats: int, world: World) -> None:
    """Assert equal results, then measure all forms on one rank."""
    scene = features_BD, rows_B, bank_ND = make_scene(num_rows, world.device)
    in_fp32 = partial(ours, world=world, products=torch.float32)
    in_bf16 = partial(ours, world=world, products=torch.bfloat16)
    steps: dict[str, Step] = {
        "published form": lambda x_BD, rows_B, m_ND: published(x_BD, rows_B[:, None], m_ND),
        "F.cross_entropy": eager,
        "F.cross_entropy, compiled": torch.compile(eager, dynamic=False),
        "ours, float32": in_fp32,
        "ours, rounded to 16 bits": in_bf16,
    }
    narrow_ND = bank_ND.bfloat16()

    def stored(step: Step, x_BD: Tensor, rows_B: Tensor, bank_ND: Tensor) -> Tensor:
        return step(x_BD, rows_B, narrow_ND[: len(bank_ND)])

    steps["ours, stored in 16 bits"] = partial(stored, in_bf16)
    if not find_spec("cut_cross_entropy"):
        benchmark.facts["Cut Cross-Entropy"] = "not installed: `pip install cut-cross-entropy`"
    elif world.device.type == "cpu":
        steps[CUT] = cut
    else:  # its GPU kernel takes 16-bit types only
        steps[f"{CUT}, 16 bits"] = partial(stored, cut)
    few = (features_BD, rows_B % ROWS_COMPARED, bank_ND[:ROWS_COMPARED])
    benchmark.facts |= assert_equal(steps, few)
    cases: dict[str, Callable[[], object]] = {
        name: partial(differentiate, step, *scene) for name, step in steps.items()
    }
    cases["two products, float32"] = partial(two_products, features_BD, bank_ND)
    cases["two products, bfloat16"] = partial(two_products, features_BD, narrow_ND)
    benchmark.measure(cases, repeats, dict.fromkeys(cases, QUERIES), "queries")
    peak_of = extra_peak_mb if world.device.type == "cpu" else extra_gpu_peak_mb
    for name, case in cases.items():
        benchmark.result(name).peak_mb = peak_of(case)


def extra_gpu_peak_mb(case: Callable[[], object]) -> float:
    """Return the most GPU memory that a case allocates above the memory in use before it."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    case()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def add_ratios(benchmark: Benchmark, num_rows: int) -> None:
    """Add the ratios of all forms to ours, and the floors."""
    compare = partial(compare_fastest, benchmark)
    narrow = min(
        ("ours, rounded to 16 bits", "ours, stored in 16 bits"),
        key=lambda name: benchmark.result(name).min_s,
    )
    theirs, mine = (benchmark.result(n).peak_mb or 1.0 for n in ("published form", "ours, float32"))
    compare("published_fp32", "published form", "ours, float32")
    compare("published_16bit", "published form", narrow)
    compare("eager_fp32", "F.cross_entropy", "ours, float32")
    compare("compiled_fp32", "F.cross_entropy, compiled", "ours, float32")
    names = [result.name for result in benchmark.results]
    if CUT in names:
        compare("cut_fp32", CUT, "ours, float32")
    if f"{CUT}, 16 bits" in names:
        compare("cut_16bit", f"{CUT}, 16 bits", narrow)
    compare("floor_fp32", "ours, float32", "two products, float32")
    compare("floor_16bit", narrow, "two products, bfloat16")
    benchmark.ratios["memory"] = theirs / max(mine, 1.0)
    gflop = 4e-9 * QUERIES * DIM * num_rows
    on = "gpu_" if benchmark.device == "cuda" else ""
    for name, ours, rate in (("fp32", "ours, float32", "fp32"), ("16bit", narrow, "bf16")):
        least = gflop / benchmark.rates[f"{on}matrix_{rate}_gflops"]
        benchmark.floor(f"machine_{name}", ours, least, f"{gflop:,.0f} GFLOP of two products")


def compare_fastest(benchmark: Benchmark, name: str, theirs: str, ours: str) -> None:
    """Add the ratio of the fastest repeats: repeats are interleaved, and other load only adds
    time."""
    benchmark.ratio(name, theirs, ours)
    benchmark.ratios[name] = benchmark.result(theirs).min_s / benchmark.result(ours).min_s


def partial_fc(
    features_BD: Tensor, rows_B: Tensor, shard_SD: Tensor, start: int, world: World
) -> Tensor:
    """Return loss and gradient, [B, 1 + D], of this rank's queries in Partial-FC's form.

    Each rank computes the logits of all ranks' queries over its shard, whose first row is `start`.
    Collectives combine their maximum, their sum, the logit of the instance, and the gradient.
    """
    features_GD, rows_G = gather_batch(world, [features_BD, rows_B])
    logits_GS = (features_GD @ shard_SD.T).div_(TEMPERATURE)
    largest_G = logits_GS.amax(dim=1)
    dist.all_reduce(largest_G, dist.ReduceOp.MAX)
    local_G = rows_G - start
    is_here_G = (local_G >= 0) & (local_G < len(shard_SD))
    own_G = logits_GS.gather(1, local_G.where(is_here_G, 0)[:, None])[:, 0].where(is_here_G, 0)
    dist.all_reduce(own_G)
    p_GS = logits_GS.sub_(largest_G[:, None]).exp_()
    sum_G = p_GS.sum(dim=1)
    dist.all_reduce(sum_G)
    p_GS /= sum_G[:, None]
    here_G = is_here_G.nonzero()[:, 0]
    p_GS[here_G, local_G[here_G]] -= 1
    gradient_GD = p_GS @ shard_SD / TEMPERATURE / len(rows_G)
    gradient_BD = torch.empty_like(features_BD)
    dist.reduce_scatter_tensor(gradient_BD, gradient_GD)
    loss = (sum_G.log() + largest_G - own_G).mean()
    return torch.cat([loss.expand(len(rows_B), 1), gradient_BD], dim=1)


def work(num_rows: int, repeats: int) -> None:
    """Run as one rank of two, with half the bank and half the queries, all forms in turn."""
    with open_world("cpu", threads=1) as world:
        features_GD, rows_G, bank_ND = make_scene(num_rows, world.device)
        start, stop = shard_range(num_rows, world.rank, world.size)
        mine = slice(*shard_range(QUERIES, world.rank, world.size))
        shard_SD = bank_ND[start:stop].clone()
        del bank_ND
        none_B1 = torch.full((len(rows_G[mine]), 1), -1)

        def step(products: torch.dtype, x_BD: Tensor, rows_B: Tensor, _: Tensor) -> Tensor:
            bank = MemoryBank(shard_SD, start, num_rows, 0.5, products=products)
            return neighbourhood_nll(x_BD, rows_B, none_B1, bank, world, TEMPERATURE)

        def case_of(products: torch.dtype) -> Callable[[], Tensor]:
            form = partial(step, products)
            return lambda: differentiate(form, features_GD[mine], rows_G[mine], shard_SD)

        cases = {
            "partial_fc": lambda: partial_fc(
                features_GD[mine], rows_G[mine], shard_SD, start, world
            ),
            "ours": case_of(torch.float32),
            "ours_16bit": case_of(torch.bfloat16),
        }
        theirs, our, rounded = (case() for case in cases.values())
        for found, relative, absolute in ((our, 1e-3, 1e-5), (rounded, 2e-2, 1e-3)):
            found[:, 1:] /= world.size  # DDP averages
            torch.testing.assert_close(found, theirs, rtol=relative, atol=absolute)
        figures = {name: {"seconds": [], "peak_mb": extra_peak_mb(c)} for name, c in cases.items()}
        for _ in range(repeats):
            for name, case in cases.items():
                dist.barrier()
                started = time.perf_counter()
                case()
                figures[name]["seconds"].append(time.perf_counter() - started)
        if world.is_coordinator:
            print(json.dumps(figures), flush=True)


def measure_two_ranks(benchmark: Benchmark, num_rows: int, repeats: int) -> None:
    """Measure all forms on two ranks in processes of their own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command = [*launcher, "-m", "benchmarks.partition", "--worker", str(num_rows), str(repeats)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    names = {
        "partial_fc": "Partial-FC's sharding, 2 ranks",
        "ours": "ours, 2 ranks",
        "ours_16bit": "ours, 2 ranks, rounded to 16 bits",
    }
    for form, name in names.items():
        benchmark.add(name, work=QUERIES, unit="queries", **figures[form])
    for form, ratio in (("ours", "partial_fc_2ranks"), ("ours_16bit", "partial_fc_2ranks_16bit")):
        compare_fastest(benchmark, ratio, names["partial_fc"], names[form])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--worker", nargs=2, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(*given.worker)
        return
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no NVIDIA GPU here; `python -m benchmarks.partition` measures the CPU")
        return
    num_rows = SMOKE if given.smoke else IMAGENET
    benchmark = Benchmark("partition", given.device)
    with open_world(given.device, threads=os.cpu_count()) as world:
        measure(benchmark, num_rows, given.repeats, world)
    add_ratios(benchmark, num_rows)
    if given.device == "cpu":
        measure_two_ranks(benchmark, num_rows, given.repeats)
    benchmark.finish(given.json)


if __name__ == "__main__":
    main()
