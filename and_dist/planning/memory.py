"""Estimate the memory of a rank, by part: permanent parts, and those of each phase. No torch.

W ranks, G queries of a step, B of one rank, N rows, S of one rank, D feature, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from and_dist.config import discovery_memory
from and_dist.config.number_types import copy_bytes
from and_dist.config.schema import MOST_PIXEL_BYTES
from and_dist.planning.workload import Job

BATCHES_QUEUED = 3
"""Batches that data/pipeline.py prepares ahead; a step works on one more."""
BATCHES_FETCHED = 4
"""Batches whose bytes data/loader.py reads ahead."""
ROWS_PER_BLOCK = 16_384
"""Rows of a shard that the partition rounds at a time (partition_kernels.py)."""
LARGEST_TENSORS = 2
"""Gradients of activations, or copies of them in other layouts, that exist at once on a CPU beside
the activations kept."""

FAISS_SCRATCH = 2**28
"""Bytes that faiss keeps on a GPU (faiss_search.py)."""
FAISS_TILE = 2 * 512 * 4, 2**18
"""Bytes of a row of the shard that faiss takes for two tiles of similarities while it searches all
rows on a GPU, beyond what it keeps, and the most rows of a tile."""

ROWS_PER_DRAW = 65_536
"""Rows of the first bank that are drawn at a time (memory_bank.py)."""
COPIES_OF_A_DRAW = 2
"""Copies of the drawn rows, in numbers of 8 bytes."""

Place = Literal["device", "host"]
"""The memory that a part lies in."""


@dataclass(frozen=True)
class Part:
    """Hold the name and size of one thing that a rank holds."""

    name: str
    bytes: float
    place: Place = "device"
    """The memory it lies in on a GPU's job; without GPUs there is one memory."""


@dataclass(frozen=True)
class Phase:
    """Hold the parts that exist only during one phase of a run."""

    name: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Footprint:
    """Hold everything that a rank holds, by part and phase."""

    staying: tuple[Part, ...]
    """Parts that exist all the time."""
    phases: tuple[Phase, ...]
    has_host: bool
    """True if host and device have memories of their own."""

    def parts(self, phase: Phase, place: Place = "device") -> list[Part]:
        """Return the parts in one memory during a phase."""
        both = [*self.staying, *phase.parts]
        return [part for part in both if not self.has_host or part.place == place]

    def total(self, phase: Phase, place: Place = "device") -> float:
        """Return the bytes in one memory during a phase."""
        return sum(part.bytes for part in self.parts(phase, place))

    def fullest(self, place: Place = "device") -> Phase:
        """Return the phase in which a memory holds most."""
        return max(self.phases, key=lambda phase: self.total(phase, place))

    def peak(self, place: Place = "device") -> float:
        """Return the most bytes that a memory holds in any phase."""
        return self.total(self.fullest(place), place)

    def phase(self, name: str) -> Phase:
        """Return the phase of this name."""
        return next(phase for phase in self.phases if phase.name == name)

    def bytes_of(self, name: str) -> float:
        """Return the bytes of all parts of this name."""
        all_parts = [*self.staying, *(part for phase in self.phases for part in phase.parts)]
        return sum(part.bytes for part in all_parts if part.name == name)


def footprint_of(job: Job) -> Footprint:
    """Return everything that a rank of a job holds."""
    staying = (
        Part("shard of the bank", shard_bytes(job)),
        Part("shard in 16 bits, for its products", copied_bytes(job)),
        Part(columns_of(job), table_bytes(job)),
        Part("weights, gradients, momentum", encoder_bytes(job)),
        Part("images in flight", images_bytes(job)),
        Part("compressed gradients", compression_bytes(job)),
        Part("labels of all rows, if there are any", 8 * job.num_rows, "host"),
        Part("cached images, at most", cache_bytes(job), "host"),
        Part("checkpoint: copy of all", rank_checkpoint_bytes(job), "host"),
        *framework(job),
        *([Part("faiss's scratch", FAISS_SCRATCH)] if searches_on_gpu(job) else []),
    )
    phases = [Phase("start", start_parts(job)), Phase("training", training_parts(job))]
    if job.discovers:
        phases.append(Phase("discovery", discovery_parts(job)))
    if job.config.data.test is not None or job.config.bank.init == "features":
        phases.append(Phase("evaluation", evaluation_parts(job)))
    return Footprint(staying, tuple(phases), job.on_gpu)


def shard_bytes(job: Job) -> int:
    """Return the bytes of a shard, the only part that shrinks as the world grows."""
    return job.shard_rows * job.row_bytes


def copied_bytes(job: Job) -> int:
    """Return the bytes of the copy of a shard that a GPU multiplies (memory_bank.py)."""
    is_copied = job.on_gpu and job.products not in ("stored", job.config.bank.dtype)
    return copy_bytes(job.shard_rows, job.dim) if is_copied else 0


def columns_of(job: Job) -> str:
    """Return the names of the columns of the table that every rank holds whole."""
    return "neighbours, entropies, anchors" if job.discovers else "neighbours and entropies"


def table_bytes(job: Job) -> int:
    """Return the bytes of the table that every rank holds whole; only discoveries add anchors."""
    with_anchors = discovery_memory.table_bytes(job.num_rows, job.neighbours)
    return with_anchors if job.discovers else with_anchors - 8 * job.num_rows


def encoder_bytes(job: Job) -> int:
    """Return the bytes of weights, gradients and what the optimiser keeps.

    DDP's buckets are the gradients (distributed/ddp.py), so they are not held twice.
    """
    return 4 * (2 + kept_by_optimiser(job)) * job.parameters + job.cost.buffer_bytes


def kept_by_optimiser(job: Job) -> int:
    """Return how many numbers the optimiser keeps of each parameter."""
    optim = job.config.optim
    return 2 if optim.name == "adamw" else int(optim.momentum > 0)


def images_bytes(job: Job) -> float:
    """Return the bytes of images in flight: encoded ones read ahead, and finished ones.

    The size of encoded images is unknown before they are read, and taken to be that of their
    pixels.
    """
    pixels = 3 * job.config.data.image_size**2
    fetched = BATCHES_FETCHED * pixels
    made = (BATCHES_QUEUED + 1) * pixels * (1 + 4)
    return job.local_batch * (fetched + made)


def compression_bytes(job: Job) -> int:
    """Return the bytes of the compressed gradients.

    With powerSGD they are the remainder that it has not sent yet, and a copy.
    """
    bytes_of = {"none": 0, "float16": 2, "bfloat16": 2, "powersgd": 8}
    return bytes_of[job.config.optim.compression] * job.parameters if job.world > 1 else 0


def cache_bytes(job: Job) -> float:
    """Return a rank's share of the cached images that the ranks of a node hold together."""
    return 1e9 * job.config.data.cache_gb / job.size.ranks_of_a_node


def rank_checkpoint_bytes(job: Job) -> int:
    """Return the bytes of a rank's copy of all that it holds, which a thread writes as it is."""
    weights = 4 * (1 + kept_by_optimiser(job)) * job.parameters + job.cost.buffer_bytes
    return weights + table_bytes(job) + shard_bytes(job)


def checkpoint_bytes(job: Job) -> int:
    """Return the bytes of a checkpoint on the disk: shared tensors once, and the whole bank."""
    return rank_checkpoint_bytes(job) - shard_bytes(job) + job.num_rows * job.row_bytes


def framework(job: Job) -> tuple[Part, ...]:
    """Return the memory of a rank before it holds anything, if the hardware is known."""
    if job.hardware is None:
        return ()
    name, size = "framework", 1e6 * job.hardware.framework_mb
    on_host = (Part(name, size, "host"),) if job.on_gpu else ()
    return (Part(name, size), *on_host)


def start_parts(job: Job) -> tuple[Part, ...]:
    """Return the parts of the start: the first rows of the shard are drawn.

    This is before there is a checkpoint to copy.
    """
    drawn = COPIES_OF_A_DRAW * 8 * min(job.shard_rows, ROWS_PER_DRAW) * job.dim
    wide = 4 * job.shard_rows * job.dim
    rounded = wide if job.on_gpu or job.config.bank.dtype != "float32" else 0
    return (Part("first rows of the bank", drawn + rounded, "host"),)


def training_parts(job: Job) -> tuple[Part, ...]:
    """Return the parts that exist while a step is computed."""
    activations = activation_bytes(job)
    return (
        Part("activations", activations),
        Part("weights in 16 bits", 2 * job.parameters if job.precision == "bfloat16" else 0),
        Part("largest gradient, on its way into its bucket", unpacked_gradient(job)),
        Part("queries and partitions", exchange_scratch(job)),
        # The optimiser's step comes when the activations are gone, and reuses their memory.
        Part("optimiser's scratch", max(0.0, optimiser_scratch(job) - activations)),
    )


def activation_bytes(job: Job) -> float:
    """Return the bytes of the activations of a step and of their gradients.

    A CPU's libraries lay the largest ones out anew, beside what is kept.
    """
    side = job.config.data.image_size
    if job.on_gpu:
        return job.part_batch * job.encoder_cost.held_bytes(job.precision, side)
    kept = job.cost.kept_bytes(job.precision, side)
    return job.part_batch * (kept + LARGEST_TENSORS * job.cost.largest_bytes(job.precision, side))


def unpacked_gradient(job: Job) -> int:
    """Return the bytes of the largest gradient of DDP.

    The backward pass writes it to memory of its own, and DDP copies it into its bucket.
    """
    return 4 * job.cost.largest_parameter if job.world > 1 else 0


def exchange_scratch(job: Job) -> float:
    """Return the bytes of a step's queries and partitions.

    These are the queries of all ranks and, twice, the partitions found for them, packed and
    unpacked; the positives in the bank's type and in float32; and the block of the shard that is
    rounded. Of the parts of a batch, queries are kept up to the step's end.
    """
    query = 4 * job.dim + 8 * (1 + job.neighbours) + 1
    answer = 2 * (4 * job.dim + 4)
    positives = (1 + job.neighbours) * (job.row_bytes + 4 * job.dim)
    kept = 2 * query * job.queries if job.num_parts > 1 else 0
    in_work = job.part_queries * (2 * query + 3 * answer + positives)
    return kept + in_work + ROWS_PER_BLOCK * job.row_bytes


def optimiser_scratch(job: Job) -> float:
    """Return the bytes of temporary gradients (weight decay, Nesterov); 0 if optim.fused.

    On a GPU it holds them for all parameters at once, on a CPU for the largest parameter.
    """
    if job.config.optim.fused:
        return 0.0
    return 2 * 4 * (job.parameters if job.on_gpu else job.cost.largest_parameter)


def discovery_parts(job: Job) -> tuple[Part, ...]:
    """Return the parts that exist during discovery.

    The new table stands beside the old one, and rank 0 checks it, sorted, beside a copy.
    """
    rows = job.num_rows
    search = job.config.discovery.search
    approximate = 4 * job.shard_rows * job.dim if search not in ("Flat", "fused") else 0
    return (
        Part("discovery's budget", 1e6 * budget_mb(job)),
        Part("index of the search", approximate),
        Part("faiss's tiles", search_tile(job)),
        Part("the next round's table", table_bytes(job)),
        Part("rank 0's check of it", discovery_memory.check_bytes(rows, job.neighbours)),
    )


def evaluation_parts(job: Job) -> tuple[Part, ...]:
    """Return the parts that exist during evaluation: features of the shard's images.

    Before the first round their pixels are compared as features too, unless these are too many.
    """
    pixels = 4 * job.shard_rows * 3 * job.config.data.image_size**2
    has_pixels = job.config.evaluation.baselines and job.config.data.test is not None
    compared = pixels if has_pixels and pixels <= MOST_PIXEL_BYTES else 0
    return (
        Part("features of the shard", max(4 * job.shard_rows * job.dim, compared)),
        Part("faiss's tiles", search_tile(job)),
    )


def searches_on_gpu(job: Job) -> bool:
    """Return whether faiss searches on a GPU, for discovery or for kNN."""
    return job.on_gpu and (job.discovers or job.config.data.test is not None)


def search_tile(job: Job) -> int:
    """Return the bytes of faiss's tiles of similarities on a GPU."""
    per_row, most_rows = FAISS_TILE
    return per_row * min(job.shard_rows, most_rows) if searches_on_gpu(job) else 0


def refused_discovery(job: Job) -> bool:
    """Return whether discovery.check_discovery refuses the memory budget."""
    given = job.config.discovery.memory_mb
    return job.discovers and given != "auto" and given < smallest_budget_mb(job)


def budget_mb(job: Job) -> int:
    """Return the memory of discovery: as given or chosen, or as much as training would ask for."""
    given, needed = job.config.discovery.memory_mb, smallest_budget_mb(job)
    if given != "auto":
        return max(given, needed)
    free = None
    if job.on_gpu and job.hardware is not None:
        free = 1e9 * job.hardware.memory_gb - 1e6 * job.hardware.framework_mb
    held = discovery_memory.held_bytes(shard_bytes(job), job.num_rows, job.neighbours)
    return discovery_memory.auto_memory_mb(free, held, 1e6 * needed)


def smallest_budget_mb(job: Job) -> int:
    """Return the smallest memory of discovery: twice the results of a scan for each row of a shard.

    method/discovery.py refuses less.
    """
    candidates = job.neighbours + 1 if job.config.discovery.search == "fused" else 0
    return -(-2 * (16 + 12 * candidates) * job.shard_rows // 1_000_000)
