"""Learn clusters as labels: DeepCluster (Caron, Bojanowski, Joulin, Douze, ECCV 2018).

Before every epoch the features of all images are whitened and clustered, and a new classifier
learns which image lies in which cluster. The paper draws images evenly from all clusters; here an
image weighs in inverse proportion to the size of its cluster, which the paper says is the same.

G global batch, S rows of this shard, N all rows, C clusters, D feature, E components kept.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from and_dist.config.schema import Config
from and_dist.data.index import LabelledImages
from and_dist.distributed.collectives import reduce_sum
from and_dist.method.loss import GlobalBatch, gather_features_with_grad
from and_dist.models.optim import forget
from and_dist.objectives.base import Objective, ObjectiveContext, build_classifier
from and_dist.objectives.kmeans import KMeansOptions, Shard, cluster, whiten
from and_dist.utils.counter_random import derive_key


class DeepCluster(Objective):
    """Minimises the weighted cross-entropy of each image's cluster."""

    def __init__(self, context: ObjectiveContext) -> None:
        """Begin with one cluster, until the first epoch begins."""
        super().__init__(context)
        config, device = context.config, context.world.device
        self._clusters_N = torch.zeros(context.bank.num_rows, dtype=torch.int64, device=device)
        self._weights_C = torch.zeros(
            config.deepcluster.clusters, dtype=torch.float64, device=device
        )
        dim = config.encoder.feature_dim
        self.head = build_classifier(dim, config.deepcluster.clusters, config.seed, device)

    @classmethod
    def check(cls, config: Config, images: LabelledImages) -> None:
        """Raise ValueError for more clusters than images."""
        if config.deepcluster.clusters > len(images.index):
            raise ValueError(
                f"deepcluster.clusters = {config.deepcluster.clusters} are more than the "
                f"{len(images.index)} images of data.train={config.data.train}; take at most "
                "that many"
            )

    def tensors(self) -> dict[str, Tensor]:
        """Return each row's cluster, and each cluster's weight."""
        return {"clusters": self._clusters_N, "weights": self._weights_C}

    def begin_epoch(self, number: int, optimiser: Optimizer) -> None:
        """Cluster the features as they are, and renew the classifier."""
        context, settings = self.context, self.context.config.deepcluster
        features_SE = whiten(context.features_of_shard(), settings.components, context.world)
        key = derive_key(context.config.seed, "clusters", number)
        bank = context.bank
        with context.phase("clusters of all images") as advance:
            shard = Shard(features_SE, bank.start, bank.num_rows)
            options = KMeansOptions(settings.clusters, settings.iterations, key)
            clusters_S = cluster(shard, options, context.world, advance)
        self._clusters_N.zero_()
        self._clusters_N[bank.start : bank.stop] = clusters_S
        reduce_sum(context.world, self._clusters_N)
        sizes_C = self._clusters_N.bincount(minlength=settings.clusters)
        mean_size = bank.num_rows / (sizes_C > 0).sum().double()
        self._weights_C.copy_(mean_size / sizes_C.clamp(min=1))
        self._renew_head(number, optimiser)

    def loss(self, features_BD: Tensor, batch: GlobalBatch) -> Tensor:
        """Return the cross-entropy, in which the weights of all rows have the mean 1."""
        features_GD = gather_features_with_grad(features_BD, batch, self.context.world)
        logits_GC = self.head(features_GD / self.context.config.objective.temperature)
        is_real_G = batch.rows_G >= 0
        clusters_G = self._clusters_N[batch.rows_G.clamp(min=0)]
        loss_G = functional.cross_entropy(logits_GC, clusters_G, reduction="none")
        weighted_G = (loss_G * self._weights_C[clusters_G].to(loss_G.dtype)).where(is_real_G, 0)
        return weighted_G.sum() / is_real_G.sum().clamp(min=1)

    def _renew_head(self, number: int, optimiser: Optimizer) -> None:
        """Draw the classifier anew by (seed, epoch), and clear its momentum."""
        config = self.context.config
        seed = int(derive_key(config.seed, "classifier", number)) >> 1
        fresh = build_classifier(
            config.encoder.feature_dim, config.deepcluster.clusters, seed, self.context.world.device
        )
        self.head.load_state_dict(fresh.state_dict())
        forget(optimiser, self.head.parameters())
