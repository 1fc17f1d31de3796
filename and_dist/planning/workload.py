"""Describe the job that a plan is made for: its rows, ranks and hardware. No torch.

W ranks, G queries of a step, B of one rank, N rows, S of one rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from and_dist.config.number_types import (
    Precision,
    Processor,
    Products,
    auto_precision,
    auto_products,
)
from and_dist.config.schema import Config, DataConfig
from and_dist.data.manifest import MANIFEST, About, check_sizes, read_about
from and_dist.planning.costs import Cost, EncoderCost, cost_of
from and_dist.planning.hardware import Hardware

Images = Literal["encoded", "pixels"]
"""The form of stored images."""
SMALLEST_LOCAL_BATCH = 2
"""The smallest batch of a rank, as in data/order.py."""


@dataclass(frozen=True)
class Size:
    """Hold the nodes, ranks and cores of a job."""

    nodes: int
    ranks_of_a_node: int
    cores_of_a_node: int | None = None
    """Cores of a node; None takes as many as the hardware has."""

    @property
    def world(self) -> int:
        """Return W, the number of ranks."""
        return self.nodes * self.ranks_of_a_node


@dataclass(frozen=True)
class Job:
    """Describe a config on some ranks of some hardware."""

    config: Config
    num_rows: int
    size: Size
    hardware: Hardware | None
    """Hardware of the ranks; None if its speed is unknown."""
    images: Images = "encoded"
    """Form of the training images; `pixels` need no decoding."""

    def __post_init__(self) -> None:
        """Raise ValueError unless there is a rank, and a row for each, and the encoder is known."""
        if self.size.nodes < 1 or self.size.ranks_of_a_node < 1:
            raise ValueError(
                f"{self.size.nodes} node(s) of {self.size.ranks_of_a_node} rank(s): a job takes at "
                "least one of each"
            )
        assert self.encoder_cost  # which is counted, where no table has it
        if self.num_rows < self.world:
            raise ValueError(
                f"{self.num_rows:,} rows for {self.world:,} ranks: every rank takes at least one; "
                "ask for fewer nodes, GPUs or workers"
            )

    def of(self, **changes: int) -> Job:
        """Return the same job with other `num_rows`, `nodes` or `ranks_of_a_node`."""
        rows = changes.pop("num_rows", self.num_rows)
        return replace(self, num_rows=rows, size=replace(self.size, **changes))

    @property
    def world(self) -> int:
        """Return W, the number of ranks."""
        return self.size.world

    @property
    def on_gpu(self) -> bool:
        """Return whether ranks train on GPUs."""
        return self.hardware is not None and self.hardware.kind == "gpu"

    @property
    def cost(self) -> Cost:
        """Return the costs of the encoder."""
        return self.encoder_cost.cost

    @property
    def encoder_cost(self) -> EncoderCost:
        """Return the costs of the encoder, with what its images hold on a GPU."""
        return cost_of(self.config.encoder, self.config.data.image_size)

    @property
    def dim(self) -> int:
        """Return D, the length of a feature."""
        return self.config.encoder.feature_dim

    @property
    def parameters(self) -> int:
        """Return the number of parameters of the encoder."""
        return self.cost.parameters_at(self.dim)

    @property
    def shard_rows(self) -> int:
        """Return S, the rows of the largest shard."""
        return -(-self.num_rows // self.world)

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row of the bank."""
        return self.dim * (4 if self.config.bank.dtype == "float32" else 2)

    @property
    def precision(self) -> Precision:
        """Return the type of activations."""
        asked = self.config.encoder.precision
        return auto_precision(self._processor()) if asked == "auto" else asked

    @property
    def products(self) -> Products:
        """Return the type in which rows of the bank are multiplied."""
        bank, temperature = self.config.bank, self.config.objective.temperature
        if bank.products != "auto":
            return bank.products
        shard = self.shard_rows, self.dim
        return auto_products(bank, shard, self.num_rows, temperature, self._processor())

    def _processor(self) -> Processor:
        """Return what a rank computes on, as far as it is known."""
        if self.hardware is None:
            return Processor(is_gpu=False, multiplies_16_bits=False, memory_bytes=0)
        memory_bytes = 1e9 * self.hardware.memory_gb
        return Processor(self.on_gpu, self.hardware.rounds_rows, memory_bytes)

    @property
    def local_batch(self) -> int:
        """Return B, the images of a rank in a step, padding included."""
        most = min(self.config.optim.batch_size, self.num_rows)
        return max(-(-most // self.world), SMALLEST_LOCAL_BATCH)

    @property
    def queries(self) -> int:
        """Return G, the queries of a step over all ranks, padding included."""
        return self.world * self.local_batch

    @property
    def part_batch(self) -> int:
        """Return the images of a rank that are computed together, padding included."""
        return -(-self.local_batch // self.config.optim.accumulate)

    @property
    def num_parts(self) -> int:
        """Return the parts in which a rank computes its images of a step."""
        return -(-self.local_batch // self.part_batch)

    @property
    def part_queries(self) -> int:
        """Return the queries of a part over all ranks, padding included."""
        return self.world * self.part_batch

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of steps of an epoch."""
        return -(-self.num_rows // self.config.optim.batch_size)

    @property
    def neighbours(self) -> int:
        """Return K, the neighbours of an anchor."""
        return self.config.curriculum.neighbours

    @property
    def rounds(self) -> int:
        """Return the number of rounds, round 0 included."""
        return self.config.last_round + 1

    @property
    def discovers(self) -> bool:
        """Return whether there are discoveries between rounds."""
        return self.config.method == "and"

    @property
    def cores(self) -> int:
        """Return the cores of a node."""
        if self.size.cores_of_a_node is not None:
            return self.size.cores_of_a_node
        if self.hardware is None:
            return self.size.ranks_of_a_node
        return self.hardware.cores * (self.size.ranks_of_a_node if self.on_gpu else 1)

    @property
    def threads(self) -> int:
        """Return the threads of a rank, as open_world() sets them."""
        return self.config.run.threads or max(1, self.cores // self.size.ranks_of_a_node)

    @property
    def crowding(self) -> float:
        """Return how many threads want each core of a node, at least 1."""
        return max(1.0, self.size.ranks_of_a_node * self.threads / self.cores)


def count_rows(data: DataConfig) -> int | None:
    """Return the rows of the training set without reading images; None if it is not here.

    Raise ValueError if it is a folder that cannot be a training set.
    """
    folder = Path(data.train)
    if data.train.startswith("shapes/") and not folder.exists():
        found = 2_000 if data.train == "shapes/train" else 500
    elif (folder / MANIFEST).exists():
        found = _about_of(folder, data).rows
    elif folder.is_dir():
        # Imported only here, because they import numpy, which a plan otherwise does without.
        from and_dist.data.importers.folders import list_folder
        from and_dist.data.manifest import refuse_without_manifest

        refuse_without_manifest(folder)
        found = len(list_folder(folder, "train"))
    else:
        return None
    return round(min(found, data.limit or found) * (1 - data.holdout))


def kind_of_images(data: DataConfig) -> Images:
    """Return the form of the training images; encoded if it is unknown."""
    folder = Path(data.train)
    if data.cache_gb or (data.train.startswith("shapes/") and not folder.exists()):
        return "pixels"
    is_prepared = (folder / MANIFEST).exists()
    return "pixels" if is_prepared and _about_of(folder, data).kind == "pixels" else "encoded"


def _about_of(folder: Path, data: DataConfig) -> About:
    """Return what the manifest of the training images says.

    Raise ValueError if it is damaged, or none of the files that are with it.
    """
    try:
        about = read_about(folder)
        check_sizes(folder, about)
        return about
    except ValueError as error:
        raise ValueError(f"data.train={data.train}: {error}") from None
