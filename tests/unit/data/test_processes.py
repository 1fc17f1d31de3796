from __future__ import annotations

import gc
import signal

from and_dist.config import DataConfig
from and_dist.data.bad_images import BadImages
from and_dist.data.datasets import draw_shapes
from and_dist.data.loader import TrainingLoader
from and_dist.data.order import Order
from and_dist.data.processes import open_processes
from tests.loading import world_of


def collect_garbage() -> int:
    """A child that waits for ever is ended, too."""
    signal.alarm(10)
    return gc.collect()


def test_a_process_outlives_the_pipelines_of_its_parent() -> None:
    """A forked child with a dead DALI pipeline in its garbage dies of it, or never ends."""
    index = draw_shapes("train", 16).index
    gc.disable()
    try:
        loader = TrainingLoader(
            index, DataConfig(), Order(16, 8, 0), world_of(), BadImages(index, "stop")
        )
        next(loader.batches(0))
        del loader
        with open_processes(1) as processes:
            assert processes.submit(collect_garbage).result() >= 0
    finally:
        gc.enable()
