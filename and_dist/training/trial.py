"""Predict how long a run takes on this machine, by a few steps with weights that are thrown away.

B local batch, G global batch, S rows of a shard, D feature.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from and_dist.config.schema import Config
from and_dist.data.index import LabelledImages
from and_dist.data.loader import TrainingLoader
from and_dist.data.order import Order
from and_dist.data.unreadable import BadImages
from and_dist.distributed.world import World, lone_world
from and_dist.method.memory_bank import shard_range
from and_dist.method.partition import log_partition
from and_dist.models.encoders import build_encoder, to_device

BATCHES, STEPS = 4, 2
"""The number of batches that are loaded and of steps that are timed, after one of each."""
EVALUATION = 1 / 3
"""The share of a step's time that an image takes in evaluation, which has no backward pass."""


def predict_seconds(config: Config, images: LabelledImages, world: World) -> float:
    """Return about how many seconds the run takes from its first start to its end.

    Every rank calls this at the same time, since they share the cores of a node. The run itself is
    not changed.
    """
    rows = len(images.index)
    local = -(-min(config.optim.batch_size, rows) // world.size)
    steps = -(-rows // config.optim.batch_size)
    loading = _seconds_to_load(config, images, local, world)
    computing = _seconds_of_step(config, local, rows, world)
    # Ranks decode images once for a cache, and then read pixels, which takes next to nothing.
    filling, loading_step = (loading * steps, 0.0) if config.data.cache_gb else (0.0, loading)
    is_beside = world.device.type == "cuda"
    step = max(loading_step, computing) if is_beside else loading_step + computing
    # Raw pixels, the untrained network, and the encoder after every round.
    passes = 2 * config.evaluation.baselines + config.last_round + 1
    evaluating = steps * passes * (loading + EVALUATION * computing)
    return filling + config.num_epochs * steps * step + evaluating


def _seconds_to_load(config: Config, images: LabelledImages, local: int, world: World) -> float:
    """Return the seconds in which this rank loads a batch of training images."""
    count = min(len(images.index), (BATCHES + 1) * local)
    rows = np.unique(np.linspace(0, len(images.index) - 1, count).astype(np.int64))
    some = images.index.select(rows, "trial")
    bad = BadImages(some, "skip", say=lambda _: None, largest_share=1.0)
    order = Order(len(rows), local, config.seed)
    loader = TrainingLoader(some, config.data, order, lone_world(world.device), bad)
    times = [time.monotonic()]
    for _ in loader.batches(0):
        _wait_for(world)
        times.append(time.monotonic())
    # The first batch also waits for the pipeline to be built.
    return (times[-1] - times[1]) / (len(times) - 2) if len(times) > 2 else times[1] - times[0]


def _seconds_of_step(config: Config, local: int, rows: int, world: World) -> float:
    """Return the seconds of a step's arithmetic on this rank."""
    side, dim = config.data.image_size, config.encoder.feature_dim
    encoder = to_device(build_encoder(config.encoder, config.seed, side), world.device)
    encoder.train()
    generator = torch.Generator().manual_seed(0)
    images_BCHW = torch.rand(local, 3, side, side, generator=generator).to(world.device)
    shard = shard_range(rows, 0, world.size)[1]
    features_SD = torch.rand(shard, dim, generator=generator).to(world.device)
    queries_GD = torch.rand(local * world.size, dim, generator=generator).to(world.device)

    def step() -> None:
        encoder(images_BCHW).sum().backward()
        log_partition(queries_GD, features_SD, config.objective.temperature)

    return _time(step, world)


def _time(step: Callable[[], None], world: World) -> float:
    """Return the mean seconds of a step, after one that warms up."""
    step()
    _wait_for(world)
    started = time.monotonic()
    for _ in range(STEPS):
        step()
    _wait_for(world)
    return (time.monotonic() - started) / STEPS


def _wait_for(world: World) -> None:
    """Wait until the device has done its work."""
    if world.device.type == "cuda":
        torch.cuda.synchronize()
