"""Define the sections of a config that set an optimiser. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from and_dist.config.bounds import Count, Epochs, NonNegative, Positive
from and_dist.config.validation import Section


class OptimConfig(Section):
    """Set SGD and its learning rate schedule."""

    batch_size: Count = 128
    """G, the number of images of one step over all ranks."""
    lr: Positive = 0.03
    """Learning rate at the start of every round."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """Use Nesterov's form of momentum."""
    weight_decay: NonNegative = 5e-4
    """Weight decay of every parameter; 5e-4 for CIFAR and SVHN, 1e-4 for ImageNet."""
    milestones: tuple[Count, ...] = (120, 160)
    """Epochs of a round at which the learning rate falls: code 120, 160; paper 80, 120, 160."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of the learning rate at each milestone."""
    fused: bool = True
    """Update weights and momentum in one pass, which is faster; sums round differently."""


class TrainingOptimConfig(OptimConfig):
    """Set the training of the encoder on all ranks."""

    compression: Literal["none", "float16", "bfloat16", "powersgd"] = "none"
    """Form in which gradients travel between ranks. powersgd sends large layers as products of thin
    matrices; the remainder, which it keeps for later steps, is lost when a run resumes."""


class LinearConfig(OptimConfig):
    """Set the training of the linear classifiers of `and-dist evaluate --linear`."""

    epochs: Epochs = 90
    """Number of passes over the training images, for all layers at once."""
    batch_size: Count = 256
    """Number of images of one step over all ranks."""
    lr: Positive = 0.01
    """Learning rate at the start."""
    nesterov: bool = False
    """Use Nesterov's form of momentum."""
    weight_decay: NonNegative = 1e-4
    """Weight decay of the weights and biases of the classifiers."""
    milestones: tuple[Count, ...] = (30, 60)
    """Epochs at which the learning rate falls."""
    crops: Literal["as_training", "published"] = "as_training"
    """Crops of the images. as_training takes the encoder's, without changes of colour. published is
    DeepCluster's protocol: resize the shorter side to data.test_resize, or to 256 / 224 of
    data.image_size where that is none; train on random crops of data.image_size, half of them
    mirrored, and test on the centre."""
