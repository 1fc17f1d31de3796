"""Measure the figures of this machine that `and-dist plan` predicts from.

    python -m benchmarks.hardware [--smoke] [--json FILE] [--device cpu|cuda] [--keep]

These are the times of encoders, the partition, the optimiser, a step's overhead, discovery, the
loader and the collectives of 2 and 4 ranks, and the memory of a rank that holds nothing. --gpu of
`and-dist plan` takes FILE; --keep makes the figures those of its `cpu`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from and_dist.config.validation import build
from and_dist.data.datasets import index_folder
from and_dist.data.index import ImageIndex
from and_dist.data.preparation.prepare import Job, prepare
from and_dist.data.transcode import PackOptions
from and_dist.distributed.world import World, open_world
from and_dist.method.entropy import scan_pairs
from and_dist.method.memory_bank import MemoryBank
from and_dist.method.neighbour_search import ShardSearch
from and_dist.method.partition_kernels import is_faster_in_bfloat16
from and_dist.planning.catalogue import FOLDER
from and_dist.planning.costs import COSTS
from and_dist.planning.gpus import GPUS
from and_dist.planning.hardware import Hardware
from benchmarks.common.harness import Benchmark, add_arguments, describe_machine
from benchmarks.common.images import write_photos
from benchmarks.common.measured_rates import (
    DIM,
    TEMPERATURE,
    Case,
    RunSpec,
    Seconds,
    curves,
    encoder_cases,
    least_seconds,
    links_here,
    loader_seconds,
    overhead_here,
    rates_here,
    rates_of,
    slowest,
    unit_rows,
)
from benchmarks.common.measured_runs import num_cores, seconds_here
from benchmarks.common.rank_pool import RankPool
from benchmarks.loader import Silent
from benchmarks.plan import STEPS, TOGETHER, framework_bytes, waits_of

LARGE = "alexnet"
"""The encoder whose rate of operations is assumed for encoders that are not measured."""
WANTED = RunSpec(
    images={"tiny": (16, 64, 256), "small": (16, 64, 256), LARGE: (8, 32)},
    queries=(32, 128, 512),
    loaded=(16, 64, 256),
    dtypes=("float32", "bfloat16"),
)
SMOKE = RunSpec(
    images={"tiny": (16, 64), LARGE: (4,)},
    queries=(32, 128),
    loaded=(16,),
    rows=20_000,
    dtypes=("float32", "bfloat16"),
)
LINK_IMAGES = (8, 32, 128)
DISCOVERED_ROWS = 16_384
PHOTOS, TIMES = 128, 24
"""The number of JPEGs, and how often each is repeated."""
PHOTOS_OF_A_BATCH = 32
"""The number of images in a batch of the loader."""
MEMORY_BYTES = 200_000_000


def discovery_here(world: World, rows: int, threads: int, repeats: int) -> Seconds:
    """Return the seconds of the scan of all pairs, and of an exact search for every row of a bank.

    The whole bank is on this rank.
    """
    torch.set_num_threads(threads)
    alone = World(0, 1, 0, 1, world.device, world.group, world.side_group)
    rows_SD = unit_rows(rows, world.device)
    bank, shard = MemoryBank(rows_SD, 0, rows, 0.5), ShardSearch(rows_SD, 0, 1, MEMORY_BYTES)
    rows_S = torch.arange(rows, device=world.device)
    cases: dict[str, Case] = {
        f"scan/{rows}": lambda: scan_pairs(bank, alone, TEMPERATURE, MEMORY_BYTES),
        f"search/{rows}": lambda: [
            shard.nearest(*block)
            for block in zip(rows_SD.split(2048), rows_S.split(2048), strict=True)
        ],
    }
    return least_seconds(world, cases, repeats)


def halves_here(world: World, count: int, threads: int, repeats: int) -> Seconds:
    """Return the seconds of the large encoder in 16 bits.

    `count` has to be large: with few images most of the time would be that of rounding the weights.
    """
    torch.set_num_threads(threads)
    cases = encoder_cases({LARGE: [count]}, world.device, torch.bfloat16)
    found = least_seconds(world, cases, repeats)
    return {f"{name}/16 bits": seconds for name, seconds in found.items()}


def photos_here(
    world: World, indexes: dict[str, ImageIndex], count: int, threads: int, repeats: int
) -> Seconds:
    """Return the seconds of a core for a batch of 224-pixel images, by how they are stored."""
    return {
        f"loader/{kind}/{count * 224**2}": loader_seconds(
            world, index, 224, count, threads, repeats
        )
        for kind, index in indexes.items()
    }


def write_images(folder: Path, count: int) -> dict[str, ImageIndex]:
    """Write JPEGs of 500 x 375 and the same images as raw pixels of 256; return indexes repeating
    them."""
    write_photos(folder / "photos", count)
    job = Job(folder / "photos", folder / "raw", PackOptions(raw=256), "stop", 2, Silent())
    encoded = index_folder(folder / "photos").index
    pixels = prepare(job)["train"].index
    return {"encoded": _again(encoded), "pixels": _again(pixels)}


def _again(index: ImageIndex) -> ImageIndex:
    rows = np.tile(np.arange(len(index)), TIMES)
    sides = index.heights_N[rows], index.widths_N[rows]
    return ImageIndex(index.store.select(rows), *sides, f"{index.content_hash} again")


def measure_cpu(wanted: RunSpec, repeats: int, benchmark: Benchmark) -> dict[str, Any]:
    """Measure this machine without a GPU; return the plain form of
    and_dist.planning.hardware.Hardware."""
    cores = num_cores()
    pool, rates, loaded = RankPool(), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        indexes = write_images(Path(folder), PHOTOS)
        for threads in sorted({1, cores}):
            busy = min(4, max(1, cores // threads))
            found = measure_parts(pool, busy, wanted, threads, repeats)
            if threads == 1:
                given = indexes, PHOTOS_OF_A_BATCH, threads, repeats
                loaded = slowest(pool.run(busy, photos_here, *given))
                loaded |= {name: s for name, s in found.items() if name.startswith("loader/")}
            rates[str(threads)] = as_rates(found, wanted.rows)
            note_all(benchmark, found | loaded, f"{threads} thread(s), {busy} rank(s)")
    links, steps = {}, {}
    parameters = [COSTS[name].parameters for name in wanted.images]
    for world in (2, 4):
        threads = max(1, cores // world)
        found = slowest(pool.run(world, links_here, LINK_IMAGES, parameters, threads, 4 * repeats))
        links[str(world)] = curves(found)
        note_all(benchmark, found, f"{world} ranks of {threads} thread(s)")
    threads = max(1, cores // 2)  # two ranks have a core for each thread, four ranks share cores
    for world in (2, 4):
        with tempfile.TemporaryDirectory() as root:
            steps[world] = max(pool.run(world, seconds_here, TOGETHER, root, threads, STEPS))
        benchmark.add(f"step of {TOGETHER.name}, {world} ranks", [steps[world]])
    pool.close()
    plain = {
        "name": "cpu",
        "kind": "cpu",
        "memory_gb": describe_machine()["memory_gb"],
        "cores": cores,
        "framework_mb": round(framework_bytes(2) / 1e6),
        "rates": rates,
        "links": links,
        "loader": {name.removeprefix("loader/"): c for name, c in curves(loaded).items()},
        "source": "",
        "rounds_rows": is_faster_in_bfloat16(TEMPERATURE),
    }
    return plain | waits_of(build(Hardware, plain), steps, threads)


def measure_parts(
    pool: RankPool, busy: int, wanted: RunSpec, threads: int, repeats: int
) -> Seconds:
    """Return the seconds of each part, of the slowest among `busy` ranks."""
    found = slowest(pool.run(busy, rates_here, wanted, threads, repeats))
    found |= slowest(pool.run(1, overhead_here, wanted.queries, threads, 4 * repeats))
    found |= slowest(pool.run(busy, discovery_here, DISCOVERED_ROWS, threads, repeats))
    found |= slowest(pool.run(busy, halves_here, wanted.images[LARGE][-1], threads, repeats))
    return found


def measure_gpu(wanted: RunSpec, repeats: int, benchmark: Benchmark) -> dict[str, Any]:
    """Measure one GPU; return the plain form of and_dist.planning.hardware.Hardware.

    The links between GPUs are taken from the data sheet of its kind, or of an A100.
    """
    with open_world("cuda") as world, tempfile.TemporaryDirectory() as folder:
        found = rates_here(world, wanted, 1, repeats)
        found |= overhead_here(world, wanted.queries, 1, 4 * repeats)
        found |= discovery_here(world, DISCOVERED_ROWS, 1, repeats)
        found |= halves_here(world, wanted.images[LARGE][-1], 1, repeats)
        cores = num_cores()
        indexes = write_images(Path(folder), PHOTOS)
        loaded = photos_here(world, indexes, PHOTOS_OF_A_BATCH, cores, repeats)
        about = torch.cuda.get_device_properties(world.device)
    note_all(benchmark, found | loaded, about.name)
    kind = kind_of(about.name)
    curve_of = {name.removeprefix("loader/"): c for name, c in curves(loaded).items()}
    decoding = loaded[f"loader/encoded/{PHOTOS_OF_A_BATCH * 224**2}"]
    return GPUS[kind if kind in GPUS else "a100"].model_dump(mode="json") | {
        "name": about.name,
        "origins": {
            "measured": "encoders, partition, optimiser, scan, search, launches, loading, memory",
            "derived": "links (70 % of the data sheet)",
            "rough": "what the framework takes",
        },
        "memory_gb": round(about.total_memory / 1e9, 1),
        "cores": max(1, cores // torch.cuda.device_count()),
        "rates": {"1": as_rates(found, wanted.rows)},
        "loader": curve_of,
        "decodes_per_s": PHOTOS_OF_A_BATCH * cores / decoding,
    }


def kind_of(name: str) -> str:
    """Return the name by which plans know a device: h100 for NVIDIA's H100, cpu for cpu."""
    return next((kind for kind in GPUS if kind in name.lower()), name.lower().replace(" ", "-"))


def as_rates(found: Seconds, rows: int) -> dict[str, Any]:
    """Return the plain form of and_dist.planning.hardware.Rates.

    Scan and search both multiply every pair of rows, but the scan does it once for both rows.
    """
    pairs = DISCOVERED_ROWS**2 * DIM
    large = [name for name in found if name.startswith(f"encoder/{LARGE}/")]
    known = [name for name in found if not name.startswith(("loader/", "scan/", "search/"))]
    narrow = next(name for name in large if name.endswith("/16 bits"))
    large.remove(narrow)
    return rates_of({name: found[name] for name in known if name != narrow}, rows) | {
        "operations_per_s": {
            "float32": operations_per_s(found, max(large, key=lambda name: found[name])),
            "bfloat16": operations_per_s(found, narrow),
        },
        "scan_operations_per_s": rounded(pairs / found[f"scan/{DISCOVERED_ROWS}"]),
        "search_operations_per_s": rounded(2 * pairs / found[f"search/{DISCOVERED_ROWS}"]),
    }


def operations_per_s(found: Seconds, name: str) -> float:
    """Return the rate of operations of a measured encoder, whose part is encoder/NAME/IMAGES."""
    encoder, images = name.split("/")[1:3]
    cost = COSTS[encoder]
    return rounded(int(images) * cost.operations(cost.side) / found[name])


def rounded(number: float) -> float:
    """Return a number rounded to four digits."""
    return float(f"{number:.4g}")


def note_all(benchmark: Benchmark, found: Seconds, where: str) -> None:
    """Add the seconds of all parts as results."""
    for name, seconds in found.items():
        benchmark.add(f"{name}, {where}", [seconds])


def main() -> None:
    """Run the benchmark, and keep its figures where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--keep", action="store_true", help="let and-dist plan know it by its kind")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no NVIDIA GPU here: nothing is measured")
        return
    benchmark = Benchmark("hardware", given.device)
    wanted, repeats = (SMOKE, 1) if given.smoke else (WANTED, given.repeats)
    measure = measure_cpu if given.device == "cpu" else measure_gpu
    plain = measure(wanted, repeats, benchmark)
    about = describe_machine()
    on_gpu = f"one {about['gpu']}, " if given.device == "cuda" else ""
    cores = f"{about['cores']} cores of {about['cpu']}"
    plain["source"] = f"measured on {on_gpu}{cores}: benchmarks.hardware"
    build(Hardware, plain)
    benchmark.finish(given.json)
    if given.json is not None:
        content = json.loads(given.json.read_text())
        given.json.write_text(json.dumps(content | {"hardware": plain}, indent=1) + "\n")
    if given.keep:
        file = FOLDER / f"{kind_of(plain['name'])}.json"
        file.write_text(json.dumps({"hardware": plain}, indent=1) + "\n")


if __name__ == "__main__":
    main()
