"""Learn from labels by a linear classifier on the features: the best line of the tables."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from and_dist.config.schema import Config
from and_dist.data.index import LabelledImages
from and_dist.method.loss import GlobalBatch, gather_features_with_grad
from and_dist.objectives.base import Objective, ObjectiveContext, build_classifier


class Supervised(Objective):
    """Minimises the cross-entropy of a classifier of features / tau; only here labels are seen."""

    learns_from_labels = True

    def __init__(self, context: ObjectiveContext) -> None:
        """Build the classifier for the labels of the training images."""
        super().__init__(context)
        config, device = context.config, context.world.device
        assert context.labels_N is not None
        self._labels_N = torch.tensor(context.labels_N, device=device)
        num_classes = int(context.labels_N.max()) + 1
        dim = config.encoder.feature_dim
        self.head = build_classifier(dim, num_classes, config.seed, device)

    @classmethod
    def check(cls, config: Config, images: LabelledImages) -> None:
        """Raise ValueError for images without labels."""
        if images.labels_N is None:
            raise ValueError(
                f"method=supervised learns from labels, and data.train={config.data.train} has "
                "none; right are class folders, a prepared set with labels, or another method"
            )

    def loss(self, features_BD: Tensor, batch: GlobalBatch) -> Tensor:
        """Return the mean cross-entropy over the real queries of the global batch."""
        features_GD = gather_features_with_grad(features_BD, batch, self.context.world)
        logits_GC = self.head(features_GD / self.context.config.objective.temperature)
        labels_G = self._labels_N[batch.rows_G.clamp(min=0)].where(batch.rows_G >= 0, -100)
        num_real = (batch.rows_G >= 0).sum().clamp(min=1)
        return functional.cross_entropy(logits_GC, labels_G, reduction="sum") / num_real
