"""What a rank does with a config that is accepted: it builds the encoder and trains on a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from and_dist.config.load import load_config
from and_dist.config.schema import Config
from and_dist.models.encoders import Encoder, build_encoder
from and_dist.models.learning_rate import Place, learning_rate_at
from and_dist.models.optim import build_training_optimiser, set_learning_rate
from and_dist.training.session import load_and_check
from tests.attack.configs.doors import Broken, judge, use

LARGEST_SIDE, LARGEST_SIDE_OF_CIFAR = 260, 64
"""The largest images that are computed on a CPU; an encoder for larger ones is only built. The
networks for CIFAR keep the images' resolution, and take fifty times as long at a side of 224."""


def attempt(given: dict[str, Any]) -> str:
    """Carry out an attempt in its folder; return what it broke, or ""."""
    return judge(given, through_training)


def through_training(given: dict[str, Any]) -> None:
    """Check a config as `train` does before it writes, and train on one batch."""
    config = load_config(given["names"], given["overrides"])
    use(config, given)
    load_and_check(config)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    encoder = build_encoder(config.encoder, config.seed, config.data.image_size)
    is_of_cifar = config.encoder.name.startswith("cifar_resnet")
    if config.data.image_size > (LARGEST_SIDE_OF_CIFAR if is_of_cifar else LARGEST_SIDE):
        return
    side = config.data.image_size
    train_step(config, encoder, torch.rand(2, 3, side, side))
    features_BD = encoder.eval()(torch.rand(1, 3, side, side))
    if features_BD.shape != (1, config.encoder.feature_dim):
        raise Broken(f"features have the shape {tuple(features_BD.shape)}")


def train_step(config: Config, encoder: Encoder, images_BCHW: torch.Tensor) -> None:
    """Train on images as they are normalised."""
    optimiser = build_training_optimiser(encoder, nn.Identity(), config.optim)
    set_learning_rate(optimiser, learning_rate_at(config.optim, Place(0, 2, 1)))
    colours = (config.data.mean, config.data.std)
    mean, std = (torch.tensor(three)[:, None, None] for three in colours)
    images_BCHW = (images_BCHW - mean) / std
    if not images_BCHW.isfinite().all():
        raise Broken("normalised pixels are not finite")
    (encoder.train()(images_BCHW) / config.objective.temperature).sum().backward()
    optimiser.step()
