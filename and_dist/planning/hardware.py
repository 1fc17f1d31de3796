"""Describe the speed and memory of devices, as rates and curves for plans. No torch.

Devices are measured by `python -m benchmarks.hardware`, or estimated (gpus.py).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from and_dist.config.bounds import NonNegative, Positive
from and_dist.config.validation import Section

Origin = Literal["measured", "published", "derived", "rough"]
"""The origin of a figure: measured by us, published, computed from either, or a guess."""
Precision = Literal["float32", "bfloat16"]
"""Types in which encoders and partitions are computed."""


class Curve(Section):
    """Give the seconds of an amount of work, through measured points."""

    points: Annotated[tuple[tuple[NonNegative, NonNegative], ...], Field(min_length=1)]
    """Pairs of (amount, seconds) in ascending order."""

    @field_validator("points")
    @classmethod
    def check_order(
        cls, points: tuple[tuple[float, float], ...]
    ) -> tuple[tuple[float, float], ...]:
        """Raise ValueError unless the amounts ascend."""
        if any(before[0] >= after[0] for before, after in pairwise(points)):
            raise ValueError("points of a curve come in ascending order, each amount once")
        return points

    def at(self, amount: float) -> float:
        """Return the seconds of an amount of work, on the line between its two neighbouring points.

        The first and last line go on beyond the points. Below the first point, the seconds are
        never less than the amount's share of those at the point.
        """
        if len(self.points) == 1:
            ((known, seconds),) = self.points
            return seconds * amount / known if known else seconds
        (low, low_s), (high, high_s) = next(
            (pair for pair in pairwise(self.points) if amount <= pair[1][0]), self.points[-2:]
        )
        slope = max(0.0, (high_s - low_s) / (high - low))
        share = low_s * amount / low if amount < low else 0.0
        return max(share, low_s + slope * (amount - low))


class Rates(Section):
    """Hold the rates of a rank with some threads while all cores of the machine are as busy."""

    encoders: dict[str, Curve] = Field(default_factory=dict)
    """Seconds of a forward and backward pass by images, of encoders measured in float32."""
    operations_per_s: dict[Precision, Positive]
    """Operations a second of any other encoder."""
    partition: dict[Precision, Curve]
    """Seconds for a million numbers of the shard, by queries; bfloat16 is any 16-bit type."""
    overhead: Curve
    """Seconds of a step beside all other parts, by queries."""
    optimiser: Curve
    """Seconds of the optimiser's step, by parameters."""
    scan_operations_per_s: Positive
    """Operations a second of a scan: two for each pair of rows and feature, each pair once."""
    search_operations_per_s: Positive
    """Operations a second of an exact search: two for each anchor, row and feature."""


class Links(Section):
    """Give the seconds of each collective, by the bytes that a rank receives."""

    gather: Curve
    """Seconds of an all-gather."""
    exchange: Curve
    """Seconds of an all-to-all."""
    reduce: Curve
    """Seconds of an all-reduce."""


class Hardware(Section):
    """Describe a kind of GPU, or a kind of node whose ranks train on CPUs."""

    name: str
    """Name of the hardware in plans."""
    source: str
    """Sources of the figures, in words; `origins` says it of each."""
    origins: dict[Origin, str] = Field(default_factory=dict)
    """Names of the figures by where they come from."""
    kind: Literal["cpu", "gpu"]
    """Kind of device that ranks train on."""
    memory_gb: Positive
    """Memory of a GPU; of a whole node if there is none."""
    cores: PositiveInt
    """Cores of a node, or of a node's share for each of its GPUs."""
    framework_mb: NonNegative
    """Memory of a rank before it holds anything: programs, their pools, the pipeline. For GPUs it
    is taken both on the GPU and on the host."""
    rates: dict[PositiveInt, Rates]
    """Rates by threads of a rank; for GPUs, by 1."""
    links: dict[PositiveInt, Links]
    """Links within one node, by ranks of the world."""
    network: Links | None = None
    """Links between nodes; None takes those within one node."""
    loader: dict[Literal["encoded", "pixels"], Curve]
    """Seconds of one core for a batch, by the pixels that the encoder sees of it."""
    decodes_per_s: Positive | None = None
    """JPEGs a second that a GPU decodes itself."""
    rounds_rows: bool = False
    """True if it multiplies 16 bits so fast that bank.products=auto rounds many float32 rows."""
    waits: NonNegative = 0.0
    """Seconds of any step that the ranks of a node wait for each other."""
    turns: NonNegative = 0.0
    """Seconds that each further rank on a core adds to the wait, since ranks take turns."""

    def rates_at(self, threads: int) -> tuple[Rates, float]:
        """Return the rates of the next smaller measured number of threads, and the ratio to it."""
        known = max((n for n in self.rates if n <= threads), default=min(self.rates))
        return self.rates[known], threads / known

    def links_at(self, world_size: int, nodes: int) -> tuple[Links, float]:
        """Return the links of a world, and its rounds of messages over those that were measured."""
        if nodes > 1 and self.network is not None:
            return self.network, math.log2(max(2, nodes))
        known = max((n for n in self.links if n <= world_size), default=min(self.links))
        return self.links[known], math.log2(max(2, world_size)) / math.log2(max(2, known))
