"""Build all that a run trains with on one rank, from its config and its images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from and_dist.config.schema import Config
from and_dist.data.cache import cache_in_memory
from and_dist.data.index import ImageIndex, LabelledImages
from and_dist.data.loader import TrainingLoader
from and_dist.data.order import Order
from and_dist.data.unreadable import BadImages
from and_dist.distributed.ddp import replicate
from and_dist.distributed.world import World
from and_dist.evaluation.evaluator import Evaluator
from and_dist.models.encoders import build_encoder, to_device
from and_dist.objectives.base import ObjectiveContext, build_objective, learns_from_labels
from and_dist.runs.schedule import Schedule
from and_dist.training.state import RunState, build_bank, build_state
from and_dist.utils.progress import Phase


@dataclass(frozen=True)
class RunImages:
    """Hold the images of a run: those it trains on, and those it is tested on, if any."""

    train: LabelledImages
    test: LabelledImages | None


@dataclass(frozen=True)
class Components:
    """Hold the parts of a run on one rank."""

    index: ImageIndex
    """The training images as they were prepared, whether they are cached or not."""
    bad_images: BadImages
    order: Order
    schedule: Schedule
    loader: TrainingLoader
    network: nn.Module
    """The encoder, within DDP where there are more ranks than one."""
    evaluator: Evaluator
    state: RunState
    """All that is trained, which is what a checkpoint holds."""


def build_components(
    config: Config, world: World, images: RunImages, phase: Phase, warn: Callable[[str], None]
) -> Components:
    """Return the components of a run before its first step; all ranks build them together.

    `phase` shows what takes long between steps, and `warn` tells of bad images.
    """
    index = images.train.index
    order = Order(len(index), config.optim.batch_size, config.seed)
    epochs = tuple(map(config.epochs_of, range(config.last_round + 1)))
    bad_images = BadImages(index, config.data.bad_images, warn, left_out=images.train.left_out)
    cached = cache_in_memory(index, config.data, world, bad_images)
    side = config.data.image_size
    encoder = to_device(build_encoder(config.encoder, config.seed, side), world.device)
    loader = TrainingLoader(cached, config.data, order, world, bad_images, encoder.precision)
    evaluator = Evaluator(config, images.train, images.test, world, bad_images, phase)
    example_BCHW = torch.rand(2, 3, side, side, device=world.device)
    if config.encoder.compile:
        encoder.compile()
    network = replicate(encoder, world, example_BCHW, config.optim.compression)
    bank = build_bank(config, len(index), world)
    labels_N = images.train.labels_N if learns_from_labels(config.method) else None
    features_of_shard = partial(evaluator.train_features, encoder, config.encoder.feature_dim)
    objective = build_objective(
        ObjectiveContext(config, world, bank, labels_N, features_of_shard, phase)
    )
    return Components(
        index=index,
        bad_images=bad_images,
        order=order,
        schedule=Schedule(epochs, order.steps_per_epoch),
        loader=loader,
        network=network,
        evaluator=evaluator,
        state=build_state(config.optim, encoder, bank, objective),
    )
