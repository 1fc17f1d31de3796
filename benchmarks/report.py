"""Time the report of a finished run at ImageNet's size.

    python -m benchmarks.report [--smoke] [--json FILE]

The run has 1,281,167 rows, AlexNet, four rounds of discovery and a quarter of a million lines of
metrics. It was not trained, but its files are as training writes them. `and-dist report` runs in a
process of its own; its memory is the most that it and its children hold in looks ten times a
second. The floor is reading and summing the bytes of the checkpoints, which every command does
before it uses them.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from and_dist.checkpoint.storage import save_checkpoint
from and_dist.config.load import load_config
from and_dist.config.schema import Config
from and_dist.data.index import LabelledImages, index_archive, save_manifest
from and_dist.data.stores import ArchiveStore
from and_dist.distributed.world import World, open_world
from and_dist.evaluation.neighbourhood_stats import describe_neighbourhoods
from and_dist.method.curriculum import num_anchors, select_anchors
from and_dist.method.neighbour_table import Neighbourhoods
from and_dist.runs.folder import open_run_folder
from and_dist.runs.schedule import Schedule
from and_dist.training.state import Progress
from benchmarks.common.harness import Benchmark, parse_arguments
from benchmarks.common.memory import FamilyWatch
from benchmarks.common.states import build_untrained_state

ROWS, TEST_ROWS, CLASSES = 1_281_167, 50_000, 1000
DISTINCT = 2000
"""The number of different pictures, which the rows repeat."""
LOOKS_PER_EPOCH = 250
OURS, FLOOR = "and-dist report", "read and sum checkpoints"


def make_images(folder: Path, count: int, seed: int) -> Path:
    """Write a prepared set of JPEGs of 500 x 375, as large as ImageNet's on average; return its
    manifest."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    spans, content = [], bytearray()
    for _ in range(min(DISTINCT, count)):
        few = random.integers(0, 256, (24, 32, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(few).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG")
        spans.append((len(content), file.tell()))
        content += file.getvalue()
    (folder / "pictures.bin").write_bytes(content)
    offset_N, length_N = np.array(spans)[np.arange(count) % len(spans)].T.copy()
    sides = np.full(count, 500, np.int32), np.full(count, 375, np.int32)
    file_N = np.zeros(count, np.int32)
    store = ArchiveStore((folder / "pictures.bin",), file_N, offset_N, length_N, sides[0])
    labels_N = np.arange(count) * CLASSES // count
    names = tuple(f"class {number:04}" for number in range(CLASSES))
    images = LabelledImages(index_archive(store, sides[1]), labels_N, names)
    save_manifest(images, folder / "manifest", length_N)
    return folder / "manifest"


def make_run(root: Path, rows: int, world: World) -> Config:
    """Write a run folder as a finished run of configs/paper/imagenet-alexnet.yaml leaves it."""
    train = make_images(root / "train", rows, 0)
    test = make_images(root / "test", max(CLASSES, rows * TEST_ROWS // ROWS), 1)
    config = load_config(
        ["configs/paper/imagenet-alexnet.yaml"],
        [f"run.root={root}", "name=imagenet", f"data.train={train}", f"data.test={test}"],
    )
    open_run_folder(config, world.size, "cpu")
    state = build_untrained_state(config, rows, world)
    labels_N = torch.arange(rows) * CLASSES // rows
    digest = json.loads((train / "manifest.json").read_text())["content_hash"]
    found = {}
    for round_index in range(config.last_round + 1):
        generator = torch.Generator().manual_seed(round_index)
        centres_CD = torch.randn(CLASSES, config.encoder.feature_dim, generator=generator)
        noise_ND = torch.randn(rows, config.encoder.feature_dim, generator=generator)
        state.bank.features_SD.copy_(functional.normalize(centres_CD[labels_N] + 2 * noise_ND))
        del noise_ND
        if round_index:
            table = make_neighbourhoods(rows, round_index, config, generator)
            state.objective.neighbourhoods = table
            no_rows = torch.empty(0, dtype=torch.int64)
            found[round_index] = describe_neighbourhoods(state.neighbourhoods, no_rows, labels_N)
        epochs = config.epochs_of(round_index)
        state.progress = Progress(round_index, epochs, is_begun=True)
        plain = {
            **state.plain(),
            "images": {"rows": rows, "content_hash": digest},
            "config": config.model_dump(mode="json"),
            "bad_images": {},
            "metrics_bytes": 0,
        }
        name, folder = state.progress.checkpoint_name, config.folder / "checkpoints"
        save_checkpoint(folder, name, state.tensors(), plain, world, state.bank)
    write_metrics(config, rows, found)
    return config


def make_neighbourhoods(
    rows: int, round_index: int, config: Config, generator: torch.Generator
) -> Neighbourhoods:
    """Return neighbourhoods in which a row's neighbour lies within 2,000 rows, mostly in its
    class."""
    entropy_N = 8 + torch.randn(rows, generator=generator, dtype=torch.float64)
    anchors_A = select_anchors(entropy_N, num_anchors(rows, round_index, config.last_round))
    shift_N = torch.randint(1, min(2000, rows), (rows,), generator=generator)
    neighbours_NK = torch.full((rows, 1), -1)
    neighbours_NK[anchors_A, 0] = ((torch.arange(rows) + shift_N) % rows)[anchors_A]
    return Neighbourhoods(neighbours_NK, entropy_N, anchors_A, 1.0)


def write_metrics(config: Config, rows: int, found: dict[int, dict[str, Any]]) -> None:
    """Write a line of metrics for each logged step, as a run of a thousand epochs has them."""
    per_epoch = -(-rows // config.optim.batch_size)
    epochs = tuple(map(config.epochs_of, range(config.last_round + 1)))
    schedule, when = Schedule(epochs, per_epoch), time.time() - 1e6
    with (config.folder / "metrics.jsonl").open("w") as file:

        def write(event: str, **values: object) -> None:
            file.write(json.dumps({"event": event, "time": when, **values}) + "\n")

        write("baselines", raw_pixels=None, random=0.001, seconds=60.0)
        for round_index, num_epochs in enumerate(epochs):
            if round_index in found:
                write("discovery", round=round_index, seconds=60.0, **found[round_index])
            for epoch in range(num_epochs):
                for look in range(1, LOOKS_PER_EPOCH + 1):
                    when += 0.5
                    step = schedule.steps_before(round_index, epoch)
                    step += look * per_epoch // LOOKS_PER_EPOCH
                    write(
                        "step",
                        round=round_index,
                        epoch=epoch,
                        step=step,
                        epochs=round(step / per_epoch, 4),
                        loss=7 - when % 3,
                        lr=0.03,
                        images_per_s=9000.0,
                        data_wait=0.01,
                        memory_mb=9000.0,
                    )
                write("epoch", round=round_index, epoch=epoch, loss=6.0, lr=0.03, knn_bank=None)
            write(
                "round",
                round=round_index,
                anchors=0,
                consistency=None,
                knn_bank=0.3,
                knn=0.31,
                seconds=1e5,
            )


def report(run: Path) -> tuple[float, float]:
    """Run `and-dist report`; return its seconds, and the most megabytes that it and its children
    hold."""
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", "and_dist", "report", str(run)]) as process:
        watch = FamilyWatch(process.pid)
        assert process.wait() == 0
    return time.perf_counter() - started, watch.finish()


def read_and_sum(run: Path) -> tuple[float, float]:
    """Return the seconds to read and sum all checkpoints, which any reader has to do, and
    megabytes."""
    started, size = time.perf_counter(), 0
    for file in sorted(run.glob("checkpoints/*/*.safetensors")):
        with file.open("rb") as content:
            hashlib.file_digest(content, "sha256")
        size += file.stat().st_size
    return time.perf_counter() - started, size / 1e6


def main() -> None:
    """Run the benchmark."""
    given = parse_arguments(__doc__ or "")
    benchmark = Benchmark("report")
    rows, repeats = (20_000, 1) if given.smoke else (ROWS, given.repeats)
    with tempfile.TemporaryDirectory() as folder:
        with open_world("cpu") as world:
            run = make_run(Path(folder), rows, world).folder
        pages, floors = [], []
        for _ in range(repeats):
            pages.append(report(run))
            floors.append(read_and_sum(run))
            print(f"{pages[-1][0]:.1f} s, {pages[-1][1]:,.0f} MB; floor {floors[-1][0]:.1f} s")
        size = (run / "report.html").stat().st_size
    megabytes = floors[0][1]
    benchmark.add(
        OURS, [s for s, _ in pages], megabytes, "MB of checkpoints", max(mb for _, mb in pages)
    )
    reading = benchmark.add(FLOOR, [s for s, _ in floors], megabytes, "MB of checkpoints")
    benchmark.facts["rows"] = f"{rows:,}"
    benchmark.facts["checkpoints"] = f"{floors[0][1]:,.0f} MB"
    benchmark.facts["page"] = f"{size / 1e6:.1f} MB"
    benchmark.floor("report", OURS, reading.min_s, "to read and sum the checkpoints alone")
    benchmark.finish(given.json)


if __name__ == "__main__":
    main()
