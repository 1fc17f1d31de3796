"""Learn instances, and from round to round more anchors with their neighbours: the paper's method.

B local batch, D feature.
"""

from __future__ import annotations

from torch import Tensor

from and_dist.config.schema import Config
from and_dist.data.index import LabelledImages
from and_dist.distributed.launch_env import read_launch_env
from and_dist.method.discovery import SearchOptions, check_discovery, discover
from and_dist.method.loss import GlobalBatch, sharded_nll
from and_dist.objectives.base import Objective


class Instances(Objective):
    """Tell every image from all others: neighbourhoods without a neighbour (round 0)."""

    def loss(self, features_BD: Tensor, batch: GlobalBatch) -> Tensor:
        """Return the mean of log Z over all rows minus log Z over the positives (Eq. 7)."""
        context = self.context
        temperature = context.config.objective.temperature
        return sharded_nll(features_BD, batch, context.bank, context.world, temperature)


class AnchorNeighbourhoods(Instances):
    """Discover the neighbourhoods of the most certain rows before every round after the first."""

    @classmethod
    def check(cls, config: Config, images: LabelledImages) -> None:
        """Raise ValueError for a search that these images or this memory do not allow."""
        check_discovery(
            len(images.index),
            config.encoder.feature_dim,
            read_launch_env().size,
            config.curriculum.neighbours,
            config.discovery.search,
            config.discovery.memory_bytes,
        )

    def begin_round(self, round_index: int) -> None:
        """Discover the neighbourhoods that the round trains with (Eq. 1, 5, 6)."""
        context, config = self.context, self.context.config
        with context.phase("discovery") as advance:
            self.neighbourhoods = discover(
                context.bank,
                context.world,
                round_index,
                config.curriculum.rounds,
                config.curriculum.neighbours,
                config.objective.temperature,
                config.discovery.search,
                share=config.curriculum.share,
                options=SearchOptions(config.discovery.recall, config.discovery.memory_bytes),
                progress=advance,
            )
