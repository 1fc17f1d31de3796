"""Time whole steps and the partition on one NVIDIA GPU, with images that are drawn there.

    python -m benchmarks.device.gpu [--smoke] [--json FILE]

AlexNet and ResNet18 train at 224 pixels over banks of 1.28 and of 10 million rows; printed are the
partition's share of a step, the share of the GPU's own matrix rate that is used, and memory. The
partition alone is timed at 256 and 4,096 queries beside the dense form and the floor of two matrix
products. benchmarks.loader and benchmarks.throughput measure what feeds a GPU, and
`benchmarks.discovery --device cuda` discovery.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional

from and_dist.data.loader import Batch
from and_dist.distributed.world import World, open_world
from and_dist.method.partition import log_partition
from and_dist.method.partition_merge import Partition
from and_dist.planning.costs import COSTS
from benchmarks.common.harness import Benchmark, add_arguments
from benchmarks.common.peers import TEMPERATURE
from benchmarks.partition import DIM, IMAGENET, extra_gpu_peak_mb
from benchmarks.step import Scene, build_trainer, make_batch

BATCH, MANY = 256, 4096
OPERATIONS = 6
"""Operations of a step for each multiplication of a forward pass."""
GPU = ("run.device=cuda", "encoder.precision=bfloat16", "bank.dtype=bfloat16")


def measure_step(
    benchmark: Benchmark, scene: Scene, world: World, repeats: int, operations_per_s: float
) -> None:
    """Measure a step and its partition, and note its share of the GPU's matrix rate."""
    name = f"{scene.network}, {scene.rows / 1e6:.3g}M rows"
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(scene, world, Path(folder), *GPU)
        images_BCHW, rows_B = make_batch(scene)
        precision = trainer.state.encoder.precision
        batch = Batch(images_BCHW.to(world.device, precision), rows_B.to(world.device))
        bank_SD = trainer.state.bank.features_SD
        queries_BD = functional.normalize(torch.randn(scene.batch, DIM, device=world.device), dim=1)
        cases: dict[str, Callable[[], object]] = {
            name: lambda: trainer.train_step(batch),
            f"{name}, the partition": lambda: log_partition(queries_BD, bank_SD, TEMPERATURE),
        }
        benchmark.measure(cases, repeats, dict.fromkeys(cases, scene.batch), "images", warm_up=5)
        benchmark.result(name).peak_mb = extra_gpu_peak_mb(lambda: trainer.train_step(batch))
    step_s, part_s = (benchmark.result(case).min_s for case in cases)
    operations = OPERATIONS * COSTS[scene.network].multiplications * scene.batch
    benchmark.facts[f"{name}: share of the partition"] = f"{part_s / step_s:.1%}"
    benchmark.facts[f"{name}: of the GPU's matrix rate"] = (
        f"{operations / step_s / operations_per_s:.1%}"
    )


def measure_partition(
    benchmark: Benchmark, queries: int, rows: int, repeats: int, operations_per_s: float
) -> None:
    """Measure the partition in 16 bits; its floor is two products at the GPU's measured rate."""
    draw = partial(torch.randn, device="cuda")
    queries_GD = functional.normalize(draw(queries, DIM), dim=1).bfloat16()
    rows_SD = functional.normalize(draw(rows, DIM), dim=1).bfloat16()

    def dense() -> Partition:
        """Compute the partition from the whole matrix of logits."""
        logits_GS = (queries_GD / TEMPERATURE) @ rows_SD.T
        log_z_G = logits_GS.logsumexp(dim=1)
        return Partition(log_z_G, logits_GS.sub_(log_z_G[:, None]).exp_() @ rows_SD)

    torch.cuda.empty_cache()
    forms: dict[str, Callable[[], Partition]] = {
        "fused": lambda: log_partition(queries_GD, rows_SD, TEMPERATURE)
    }
    if queries * rows * 4 < torch.cuda.mem_get_info()[0]:
        forms["dense"] = dense
        for fused, other in zip(forms["fused"](), dense(), strict=True):
            torch.testing.assert_close(fused, other.float(), rtol=0.03, atol=0.01)
    names = {form: f"partition of {queries} queries, {form}" for form in forms}
    cases: dict[str, Callable[[], object]] = {names[form]: case for form, case in forms.items()}
    benchmark.measure(cases, repeats, dict.fromkeys(cases, queries), "queries", warm_up=5)
    for form, case in forms.items():
        benchmark.result(names[form]).peak_mb = extra_gpu_peak_mb(case)
    ours_s, floor_s = (
        benchmark.result(names["fused"]).min_s,
        4 * queries * rows * DIM / operations_per_s,
    )
    benchmark.ratios[f"floor_{queries}"] = ours_s / floor_s
    if "dense" in forms:
        benchmark.ratios[f"dense_{queries}"] = benchmark.result(names["dense"]).min_s / ours_s


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, repeats=20)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("no NVIDIA GPU here; `python -m benchmarks.device.gpu` needs one")
        return
    benchmark = Benchmark("gpu", "cuda")
    operations_per_s = 1e9 * benchmark.rates_before["gpu_matrix_bf16_gflops"]
    sizes = (100_000,) if given.smoke else (IMAGENET, 10_000_000)
    with open_world("cuda") as world:
        for network in ("alexnet", "resnet18"):
            for rows in sizes:
                scene = Scene(network, 224, rows, BATCH)
                measure_step(benchmark, scene, world, given.repeats, operations_per_s)
        for queries in (BATCH, MANY):
            measure_partition(benchmark, queries, sizes[0], given.repeats, operations_per_s)
    benchmark.finish(given.json)


if __name__ == "__main__":
    main()
