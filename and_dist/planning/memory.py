"""What a rank holds, by part: what stays, and what each phase of a run takes besides. No torch.

W ranks, G queries of a step, B of one rank, N rows, S of one rank, D feature, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from and_dist.config.schema import MOST_PIXEL_BYTES
from and_dist.planning.workload import Job

BATCHES_QUEUED = 3
"""As data/pipeline.py prepares them, and one more that a step looks at."""
BATCHES_FETCHED = 4
"""As data/loader.py reads them ahead."""
ROWS_PER_BLOCK = 16_384
"""Of a shard, that partition.py rounds at a time."""
LARGEST_TENSORS = 2
"""Gradients of activations that exist at once in the backward pass, beside what is kept."""

ROWS_PER_DRAW = 65_536
"""Of the first bank, drawn at a time (bank.py)."""
COPIES_OF_A_DRAW = 2
"""Of what is drawn, in numbers of 8 bytes."""

Place = Literal["device", "host"]


@dataclass(frozen=True)
class Part:
    name: str
    bytes: float
    place: Place = "device"
    """On a GPU's job, where it lies; without GPUs there is one memory."""


@dataclass(frozen=True)
class Phase:
    """What is there besides while a run does one thing."""

    name: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Footprint:
    staying: tuple[Part, ...]
    phases: tuple[Phase, ...]
    has_host: bool
    """Whether host and device have memories of their own."""

    def parts(self, phase: Phase, place: Place = "device") -> list[Part]:
        """Of one memory while a phase lasts."""
        both = [*self.staying, *phase.parts]
        return [part for part in both if not self.has_host or part.place == place]

    def total(self, phase: Phase, place: Place = "device") -> float:
        return sum(part.bytes for part in self.parts(phase, place))

    def fullest(self, place: Place = "device") -> Phase:
        return max(self.phases, key=lambda phase: self.total(phase, place))

    def peak(self, place: Place = "device") -> float:
        return self.total(self.fullest(place), place)

    def phase(self, name: str) -> Phase:
        return next(phase for phase in self.phases if phase.name == name)

    def bytes_of(self, name: str) -> float:
        every = [*self.staying, *(part for phase in self.phases for part in phase.parts)]
        return sum(part.bytes for part in every if part.name == name)


def footprint_of(job: Job) -> Footprint:
    staying = (
        Part("shard of the bank", shard_bytes(job)),
        Part(columns_of(job), table_bytes(job)),
        Part("weights, gradients, momentum", encoder_bytes(job)),
        Part("images in flight", images_bytes(job)),
        Part("compressed gradients", compression_bytes(job)),
        Part("labels of all rows, if there are any", 8 * job.num_rows, "host"),
        Part("cached images, at most", cache_bytes(job), "host"),
        Part("checkpoint: copy of all", rank_checkpoint_bytes(job), "host"),
        *framework(job),
    )
    phases = [Phase("start", start_parts(job)), Phase("training", training_parts(job))]
    if job.discovers:
        phases.append(Phase("discovery", discovery_parts(job)))
    if job.config.data.test is not None or job.config.bank.init == "features":
        phases.append(Phase("evaluation", evaluation_parts(job)))
    return Footprint(staying, tuple(phases), job.on_gpu)


def shard_bytes(job: Job) -> int:
    """The one part that shrinks with the world."""
    return job.shard_rows * job.row_bytes


def columns_of(job: Job) -> str:
    """Of the table that every rank has whole."""
    return "neighbours, entropies, anchors" if job.discovers else "neighbours and entropies"


def table_bytes(job: Job) -> int:
    """Replicated: K row ids, an entropy and, in the last round, an anchor for every row, 8 bytes
    each (curriculum.Neighbourhoods)."""
    return 8 * (job.neighbours + 2 if job.discovers else job.neighbours + 1) * job.num_rows


def encoder_bytes(job: Job) -> int:
    """DDP's buckets are the gradients (replicas.py), so they are not held twice."""
    copies = 3 if job.config.optim.momentum else 2
    return 4 * copies * job.parameters + job.cost.buffer_bytes


def images_bytes(job: Job) -> float:
    """Fetched: unknown until they are read, taken as large as what comes out; and made."""
    pixels = 3 * job.config.data.image_size**2
    fetched = BATCHES_FETCHED * pixels
    made = (BATCHES_QUEUED + 1) * pixels * (1 + 4)
    return job.local_batch * (fetched + made)


def compression_bytes(job: Job) -> int:
    """What travels in place of the gradients; of powerSGD what it has not sent, and a copy."""
    bytes_of = {"none": 0, "float16": 2, "bfloat16": 2, "powersgd": 8}
    return bytes_of[job.config.optim.compression] * job.parameters if job.world > 1 else 0


def cache_bytes(job: Job) -> float:
    """A rank's share of what the ranks of a node hold together."""
    return 1e9 * job.config.data.cache_gb / job.size.ranks_of_a_node


def rank_checkpoint_bytes(job: Job) -> int:
    """Every rank copies all that it holds before a thread writes its share (saving.py)."""
    copies = 2 if job.config.optim.momentum else 1
    weights = 4 * copies * job.parameters + job.cost.buffer_bytes
    return weights + table_bytes(job) + shard_bytes(job)


def writing_bytes(job: Job) -> float:
    """torch's writer turns all that a rank writes into bytes, and the largest tensor once more: its
    shard, and of what is alike on all a share, but whole tensors."""
    alike = rank_checkpoint_bytes(job) - shard_bytes(job)
    largest = max(4 * job.cost.largest_parameter, 8 * job.neighbours * job.num_rows)
    return shard_bytes(job) + max(alike / job.world, largest) + max(shard_bytes(job), largest)


def checkpoint_bytes(job: Job) -> int:
    """On the disk: what is alike on all ranks once, and the bank whole."""
    return rank_checkpoint_bytes(job) - shard_bytes(job) + job.num_rows * job.row_bytes


def framework(job: Job) -> tuple[Part, ...]:
    if job.hardware is None:
        return ()
    name, size = "framework", 1e6 * job.hardware.framework_mb
    on_host = (Part(name, size, "host"),) if job.on_gpu else ()
    return (Part(name, size), *on_host)


def start_parts(job: Job) -> tuple[Part, ...]:
    """The shard of the first bank is drawn before there is anything to save."""
    drawn = COPIES_OF_A_DRAW * 8 * min(job.shard_rows, ROWS_PER_DRAW) * job.dim
    wide = 4 * job.shard_rows * job.dim
    rounded = wide if job.on_gpu or job.config.bank.dtype != "float32" else 0
    return (Part("first rows of the bank", drawn + rounded, "host"),)


def training_parts(job: Job) -> tuple[Part, ...]:
    precision, side = job.config.encoder.precision, job.config.data.image_size
    kept = job.cost.kept_bytes(precision, side)
    largest = job.cost.largest_bytes(precision, side)
    activations = job.local_batch * (kept + LARGEST_TENSORS * largest)
    return (
        Part("activations", activations),
        Part("largest gradient, on its way into its bucket", unpacked_gradient(job)),
        Part("queries and partitions", exchange_scratch(job)),
        # which comes when activations are gone
        Part("optimiser's scratch", max(0.0, optimiser_scratch(job) - activations)),
        Part("checkpoint: bytes being written", writing_bytes(job), "host"),
    )


def unpacked_gradient(job: Job) -> int:
    """The backward pass makes every gradient anew, and DDP copies it to where it travels from."""
    return 4 * job.cost.largest_parameter if job.world > 1 else 0


def exchange_scratch(job: Job) -> float:
    """Queries of everyone, what is found about them twice over, packed and unpacked; positives in
    both widths; and the block of the shard that is rounded."""
    query = 4 * job.dim + 8 * (1 + job.neighbours) + 1
    answer = 2 * (4 * job.dim + 4)
    positives = (1 + job.neighbours) * (job.row_bytes + 4 * job.dim)
    return job.queries * (2 * query + 3 * answer + positives) + ROWS_PER_BLOCK * job.row_bytes


def optimiser_scratch(job: Job) -> float:
    """Decayed and Nesterov's gradients, where one pass does not do everything: of all parameters at
    once on a GPU, else of the largest."""
    if job.config.optim.fused:
        return 0.0
    return 2 * 4 * (job.parameters if job.on_gpu else job.cost.largest_parameter)


def discovery_parts(job: Job) -> tuple[Part, ...]:
    """The new table stands beside the old one; rank 0 checks it, sorted, beside a copy."""
    rows = job.num_rows
    search = job.config.discovery.search
    approximate = 4 * job.shard_rows * job.dim if search not in ("Flat", "fused") else 0
    return (
        Part("discovery's budget", 1e6 * budget_mb(job)),
        Part("index of the search", approximate),
        Part("the next round's table", table_bytes(job)),
        Part("rank 0's check of it", max(16, 24 * job.neighbours) * rows),
    )


def evaluation_parts(job: Job) -> tuple[Part, ...]:
    """Features of the shard's images, made anew; before the first round their pixels are some,
    unless they are too many."""
    pixels = 4 * job.shard_rows * 3 * job.config.data.image_size**2
    has_pixels = job.config.evaluation.baselines and job.config.data.test is not None
    compared = pixels if has_pixels and pixels <= MOST_PIXEL_BYTES else 0
    return (Part("features of the shard", max(4 * job.shard_rows * job.dim, compared)),)


def refused_discovery(job: Job) -> bool:
    """Whether discovery.check_discovery refuses the budget."""
    return job.discovers and job.config.discovery.memory_mb < smallest_budget_mb(job)


def budget_mb(job: Job) -> float:
    """Of discovery, as given, or as training would want it."""
    return max(job.config.discovery.memory_mb, smallest_budget_mb(job) if job.discovers else 0)


def smallest_budget_mb(job: Job) -> int:
    """What a scan keeps for each row of a shard, twice (discovery.py, pairs.py)."""
    candidates = job.neighbours + 1 if job.config.discovery.search == "fused" else 0
    return -(-2 * (16 + 12 * candidates) * job.shard_rows // 1_000_000)
