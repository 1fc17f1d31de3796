"""Count the images a second that the loader brings to a GPU, from JPEGs and from packed pixels.

    python -m benchmarks.device.loader_times [--images N] [--device cpu] [--json FILE]

One rank with all cores loads images of ImageNet's kind from memory at 224 pixels, by DALI's mixed
decoding with three shares of hardware decoding, and from decoded pixels that are kept in memory.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from and_dist.config.schema import DataConfig
from and_dist.data.cache import cache_in_memory
from and_dist.data.datasets import index_folder
from and_dist.data.index import ImageIndex
from and_dist.data.loader import TrainingLoader
from and_dist.data.order import Order
from and_dist.data.unreadable import BadImages
from and_dist.distributed.world import World, open_world
from benchmarks.common.images import photos
from benchmarks.common.results import result_of
from benchmarks.device.figures import Figures
from benchmarks.device.requirements import require_gpu

BATCH = 256
DISTINCT = 64
WARM_UP, EPOCHS = 2, 4
"""The epochs that are not timed, since only from the second on are all of DALI's buffers in use,
and those that are."""
SETTINGS: dict[str, dict[str, Any]] = {
    "JPEGs, mixed decoding": {},
    "the same, hardware_decoder=0": {"hardware_decoder": 0.0},
    "the same, hardware_decoder=1": {"hardware_decoder": 1.0},
    "pixels of 256 in memory": {"cache_gb": 4.0, "cache_side": 256},
}


def write_images(folder: Path, count: int) -> ImageIndex:
    """Write JPEGs, of which some are drawn and the others repeat them, and return their index."""
    contents = photos(DISTINCT)
    for number in range(count):
        (folder / f"{number:05}.jpg").write_bytes(contents[number % DISTINCT])
    return index_folder(folder).index


def time_loader(
    figures: Figures, name: str, index: ImageIndex, options: dict[str, Any], world: World
) -> None:
    """Time some epochs, and note how much this thread works for a batch."""
    config = DataConfig(image_size=224, flip=True, crop_area=(0.2, 1.0), **options)
    index = cache_in_memory(index, config, world, BadImages(index, "stop"))
    order, bad = Order(len(index), BATCH, 0), BadImages(index, "stop")
    loader = TrainingLoader(index, config, order, world, bad, torch.bfloat16)
    seconds, worked = [], []
    for epoch in range(WARM_UP + EPOCHS):
        begun, begun_cpu = time.perf_counter(), time.thread_time()
        count = sum(len(batch.rows_B) for batch in loader.batches(epoch))
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
        worked.append(time.thread_time() - begun_cpu)
    figures.add(result_of(name, seconds[WARM_UP:], count, "images"))
    batch_ms = 1e3 * BATCH * min(worked[WARM_UP:]) / count
    figures.note(f"{name}: this thread's work for a batch", f"{batch_ms:.2f} ms")


def main() -> None:
    """Time the loader in all settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4096, help="images of an epoch")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    if given.device == "cuda":
        require_gpu()
    # Files in shared memory are read without a disk.
    with (
        open_world(given.device, threads=os.cpu_count()) as world,
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
    ):
        index, figures = write_images(Path(folder), given.images), Figures(given.json)
        for name, options in SETTINGS.items():
            time_loader(figures, name, index, options, world)


if __name__ == "__main__":
    main()
