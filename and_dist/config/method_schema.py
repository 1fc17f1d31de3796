"""Define the sections of a config that set the method, and those it is compared with. No torch."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from and_dist.config.bounds import Count, Epochs, Rounds, ShortText
from and_dist.config.validation import Section


class ObjectiveConfig(Section):
    """Set the loss."""

    temperature: Annotated[float, Field(ge=0.01, le=10)] = 0.1
    """tau of Eq. 2: 0.1 in the published CIFAR code, 0.07 for ImageNet."""


class CurriculumConfig(Section):
    """Set the rounds of discovery and training."""

    rounds: Rounds = 4
    """R, the rounds after round 0; 1 is one-off discovery, 0 is instance learning alone."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of all rows that every round adds to the anchors, of which each round has r times as
    many; none is 1 / R, so that all rows are anchors in the last round."""
    epochs: Epochs = 200
    """Number of epochs of every round, round 0 included."""
    start: Literal["instance", "random"] = "instance"
    """Round 0: instance learning, or nothing, so that round 1 discovers neighbourhoods in the
    features of a random network (the paper's random start, with bank.init=features)."""
    neighbours: Annotated[int, Field(ge=1, le=100)] = 1
    """k, the number of neighbours of an anchor."""

    @property
    def added(self) -> float:
        """Return the share of all rows that every round adds to the anchors."""
        return 1 / max(1, self.rounds) if self.share is None else self.share

    @pydantic.model_validator(mode="after")
    def check_share(self) -> CurriculumConfig:
        """Raise ValueError if the last round would have more anchors than there are rows."""
        # As a fraction of what is written, because 3 * 0.1 is more than 0.3 in binary digits.
        if self.share is not None and self.rounds * Fraction(str(self.share)) > 1:
            raise ValueError(
                f"curriculum.share = {self.share:g} in each of curriculum.rounds = {self.rounds} "
                "is more than all rows"
            )
        return self


class DiscoveryConfig(Section):
    """Set the search for neighbourhoods between rounds."""

    search: ShortText = "Flat"
    """Flat or fused, which are exact, or a faiss factory string of an approximate index, which
    holds a copy of each shard."""
    recall: Annotated[float, Field(gt=0, le=1)] = 0.98
    """Share of a sample's nearest rows that an approximate index searches wider to find."""
    memory_mb: Annotated[int, Field(ge=64, le=100_000_000)] | Literal["auto"] = "auto"
    """Memory of one rank for discovery, beside its shard, the results and an index's copy. auto is
    200 on a CPU and a tenth of what is left on a GPU, 8,000 at most, or as much as a shard needs;
    a run chooses at its first start."""

    @property
    def memory_bytes(self) -> int | None:
        """Return the memory of one rank for discovery in bytes, None for auto."""
        return None if self.memory_mb == "auto" else self.memory_mb * 1_000_000


class InstanceNceConfig(Section):
    """Set the instance discrimination by NCE that AND is compared with."""

    negatives: Annotated[int, Field(ge=1, le=10_000_000)] = 4096
    """M, the number of random rows that a query is told from."""
    z: Literal["constant", "estimated"] = "constant"
    """Normaliser of the probabilities: that of the first step, as published, or of every step."""


class DeepClusterConfig(Section):
    """Set DeepCluster, which AND is compared with."""

    clusters: Annotated[int, Field(ge=2, le=10_000_000)] = 10_000
    """C, the number of clusters; 10,000 is ten times the classes of ImageNet."""
    components: Count = 256
    """Number of directions that whitening keeps; more than encoder.feature_dim means all."""
    iterations: Epochs = 20
    """Number of Lloyd iterations before an epoch."""
