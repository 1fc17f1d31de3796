"""Define the sections of a config that set an optimiser. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from and_dist.config.bounds import Count, Epochs, NonNegative, Positive
from and_dist.config.limits import MOST_EPOCHS
from and_dist.config.validation import Section

Beta = Annotated[float, Field(ge=0, lt=1)]
"""The weight of the old in a running mean."""
MOST_PIECES = 1024
"""The most parts of a batch."""


class OptimConfig(Section):
    """Set SGD and its learning rate schedule."""

    batch_size: Count = 128
    """G, the number of images of one step over all ranks."""
    lr: Positive = 0.03
    """Learning rate of every round before it falls."""
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

    name: Literal["sgd", "adamw", "lars"] = "sgd"
    """Optimiser: SGD, as in the paper; AdamW; or LARS, which is SGD with a step of every weight
    matrix in proportion to its norm. Momentum and Nesterov's form are of SGD and LARS."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Weights of the old in AdamW's running means of gradients and of their squares."""
    trust: Positive = 0.001
    """LARS: the step of a weight matrix before momentum, as a share of its norm, at rate 1."""
    weight_decay_of: Literal["all", "matrices"] = "all"
    """Parameters that decay: all, or those of more than one dimension, which leaves out biases and
    the scales and shifts of norms."""
    lr_per_256: Positive | None = None
    """Learning rate of a batch of 256, which takes the place of `lr` and grows with batch_size."""
    schedule: Literal["steps", "cosine"] = "steps"
    """Fall of the learning rate: by `decay` at the milestones, or along half a cosine to 0."""
    span: Literal["round", "run"] = "round"
    """Time over which the learning rate rises and falls, and in which milestones count: each round
    anew, or the whole run."""
    warmup_epochs: Annotated[float, Field(ge=0, le=MOST_EPOCHS, allow_inf_nan=False)] = 0.0
    """Epochs of the span in which the learning rate grows from 0 in proportion to the steps."""
    clip_norm: Positive | None = None
    """Largest norm of all gradients together: a longer one is scaled to it; none scales nothing."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from each stage of the encoder to the one before; the head has
    the whole rate. For weights that are trained already."""
    accumulate: Annotated[int, Field(ge=1, le=MOST_PIECES)] = 1
    """Parts in which a rank computes its share of a batch, one after the other, for one step of the
    optimiser. Loss, gradients and bank are those of the whole batch, since every image is compared
    with the bank as it was before the step; only batch norm looks at each part alone."""
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
