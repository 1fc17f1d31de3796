"""Estimate the bytes that a step sends and the time that everything takes, by part. No torch.

W ranks, G queries of a step, B of one rank, N rows, S of one rank, D feature, K neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from and_dist.planning.hardware import Curve, Hardware, Precision, Rates
from and_dist.planning.workload import Job

BACKWARD = 2 / 3
"""Share of an encoder's time in its backward pass, behind which a GPU hides DDP's sums."""
IVF_SHARE, IVF_ROWS = 0.25, 100_000
"""Share of an exact search's time that an inverted file takes, building included, and the rows of
that measurement, at a recall of 0.98 (benchmarks/results/discovery.json). It falls with the square
root of the rows."""

BYTES_OF_A_GRADIENT = {"none": 4, "float16": 2, "bfloat16": 2, "powersgd": 1}
"""Bytes that travel for each number of the gradients. powersgd shrinks large layers at least four
times after its first 100 steps; they are nearly all of a network that is worth it."""
BY_THE_BANK = ("and", "instance")
"""Methods whose steps stream past the shards. The others have heads, targets and clusters of their
own, which are not estimated here."""


RECOMPUTED = 1 / 3
"""The share of a step's operations that encoder.checkpointing adds: another forward pass."""


@dataclass(frozen=True)
class Traffic:
    """Hold the bytes that a rank receives in a step, by collective; it sends as many."""

    gather: float
    """Features, rows and neighbours of the queries of all ranks."""
    exchange: float
    """Partitions of all shards for the rank's own queries."""
    gradients: float
    """DDP's all-reduce: 2 (W - 1) / W of the gradients, as optim.compression sends them."""
    loss: float
    """The all-reduce of the loss."""

    @property
    def total(self) -> float:
        """Return the bytes of all collectives."""
        return self.gather + self.exchange + self.gradients + self.loss


@dataclass(frozen=True)
class Pace:
    """Hold the seconds of a step, an epoch and a run."""

    parts: dict[str, float]
    """Seconds of a step on one rank by part, one after the other."""
    loader: float
    """Seconds of the rank's next images, which are made beside the step."""
    waits: float
    """Seconds of waiting for other ranks of the node, and for a core that ranks share."""
    step: float
    """Seconds of a step: the waits, and the longer of parts and loader (CPUs share cores)."""
    epoch: float
    """Seconds of an epoch."""
    discovery: float
    """Seconds of the last round's discovery, which has most anchors."""
    run: float
    """Seconds of all epochs and discoveries, and of features for kNN at the end of each round."""

    loader_hides: bool
    """True if the loader takes no time from the other parts, as on GPUs."""

    @property
    def bound_by(self) -> str:
        """Return the part that takes longest, of those that a step waits for."""
        every = self.parts | {"loader": self.loader}
        if self.loader_hides and self.loader < sum(self.parts.values()):
            every = self.parts
        return max(every, key=lambda name: every[name])


def traffic_of(job: Job) -> Traffic:
    """Return the bytes that a rank of a job receives in a step."""
    others = (job.world - 1) * job.local_batch
    answers = others if job.config.method in BY_THE_BANK else 0
    sums = 2 * (job.world - 1) / job.world
    return Traffic(
        gather=others * (4 * job.dim + 8 * (1 + job.neighbours) + 1),
        exchange=answers * 2 * (4 * job.dim + 4),
        gradients=sums * BYTES_OF_A_GRADIENT[job.config.optim.compression] * job.parameters,
        loss=sums * 4,
    )


def pace_of(job: Job) -> Pace | None:
    """Return the times of a job; None if the speed of its hardware is unknown."""
    if job.hardware is None:
        return None
    rates, slower = _rates_and_slowness(job, job.hardware)
    parts = {
        "encoder": slower * encoder_seconds(job, rates),
        "partition": slower * partition_seconds(job, rates),
        **collective_seconds(job, job.hardware),
        "optimiser": slower * optimiser_seconds(job, rates),
        "rest": job.crowding * job.num_parts * rates.overhead.at(job.part_queries),
    }
    if job.on_gpu:
        # At least 5 % of the sums are taken to remain after the backward pass.
        hidden = BACKWARD * parts["encoder"]
        parts["gradients"] = max(0.05 * parts["gradients"], parts["gradients"] - hidden)
    loader = loader_seconds(job, job.hardware)
    waits = waiting_seconds(job, job.hardware)
    step = _together(job, sum(parts.values()), loader) + waits
    epoch = step * job.steps_per_epoch
    forward = _together(job, (1 - BACKWARD) * parts["encoder"], loader)
    run = _run(job, epoch, forward * job.steps_per_epoch)
    return Pace(parts, loader, waits, step, epoch, discovery_seconds(job, 1.0), run, job.on_gpu)


def _rates_and_slowness(job: Job, hardware: Hardware) -> tuple[Rates, float]:
    """Return the known rates, and the factor by which computing takes longer in this job.

    Other ranks may share a rank's cores, and more threads than were measured may share its work.
    """
    rates, times_threads = hardware.rates_at(job.threads)
    return rates, 1.0 if job.on_gpu else job.crowding / times_threads


def _together(job: Job, computing: float, loading: float) -> float:
    """Return the seconds of computing and loading side by side.

    Without a GPU, the loader's threads take time from those that compute.
    """
    if job.hardware is None or job.on_gpu:
        return max(computing, loading)
    cores_of_a_rank = job.cores / job.size.ranks_of_a_node
    shared = (computing + loading) * job.threads / job.crowding / cores_of_a_rank
    return max(computing, loading, shared)


def waiting_seconds(job: Job, hardware: Hardware) -> float:
    """Return the seconds that a rank waits for others in a step on CPUs; unknown, so 0, on GPUs."""
    if job.on_gpu:
        return 0.0
    beside = hardware.waits if job.size.ranks_of_a_node > 1 else 0.0
    return beside + (job.crowding - 1) * hardware.turns


def encoder_seconds(job: Job, rates: Rates) -> float:
    """Return the seconds of the forward and backward pass of B images."""
    config, side = job.config.encoder, job.config.data.image_size
    measured = None if config.checkpointing else rates.encoders.get(config.name)
    if measured is not None and job.precision == "float32":
        return job.num_parts * measured.at(job.part_batch) * (side / job.cost.side) ** 2
    per_s = rates.operations_per_s.get(job.precision, rates.operations_per_s["float32"])
    again = 1 + RECOMPUTED if config.checkpointing else 1.0
    return again * job.local_batch * job.cost.operations(side) / per_s


def partition_seconds(job: Job, rates: Rates) -> float:
    """Return the seconds that the queries of all ranks take past this rank's shard."""
    if job.config.method not in BY_THE_BANK:
        return 0.0
    is_narrow = job.config.bank.dtype != "float32" or job.products != "stored"
    wanted: Precision = "bfloat16" if is_narrow else "float32"
    curve = rates.partition.get(wanted, rates.partition["float32"])
    return job.num_parts * curve.at(job.part_queries) * job.shard_rows * job.dim / 1e6


def optimiser_seconds(job: Job, rates: Rates) -> float:
    """Return the seconds of the optimiser's step."""
    return rates.optimiser.at(job.parameters)


def collective_seconds(job: Job, hardware: Hardware) -> dict[str, float]:
    """Return the seconds of each collective of a step."""
    if job.world == 1:
        return dict.fromkeys(("gather", "exchange", "gradients", "loss"), 0.0)
    links, rounds = hardware.links_at(job.world, job.size.nodes)
    traffic = traffic_of(job)

    def seconds(curve: Curve, size: float) -> float:
        return curve.at(size) + (rounds - 1) * curve.at(0)

    def in_parts(curve: Curve, size: float) -> float:
        return job.num_parts * seconds(curve, size / job.num_parts)

    return {
        "gather": in_parts(links.gather, traffic.gather),
        "exchange": in_parts(links.exchange, traffic.exchange) if traffic.exchange else 0.0,
        "gradients": seconds(links.reduce, traffic.gradients),
        "loss": in_parts(links.reduce, traffic.loss * job.num_parts),
    }


def loader_seconds(job: Job, hardware: Hardware) -> float:
    """Return the seconds of B images on a rank's cores, or on its GPU if that decodes faster."""
    pixels = job.local_batch * job.config.data.image_size**2
    curve = hardware.loader[job.images]
    seconds = curve.at(pixels) * job.crowding / job.threads
    if job.images == "encoded" and job.on_gpu and hardware.decodes_per_s is not None:
        seconds = min(seconds, job.local_batch / hardware.decodes_per_s)
    return seconds


def discovery_seconds(job: Job, anchors: float) -> float:
    """Return the seconds of a discovery: every pair of rows once, and a search for some rows.

    `anchors` is the share of all rows that are searched for (method/discovery.py).
    """
    if job.hardware is None or not job.discovers:
        return 0.0
    rates, slower = _rates_and_slowness(job, job.hardware)
    pairs = job.num_rows**2 * job.dim / job.world
    scan = pairs / rates.scan_operations_per_s
    search = anchors * 2 * pairs / rates.search_operations_per_s * _share_of_search(job)
    return slower * (scan + search) + _streaming_seconds(job, job.hardware)


def _share_of_search(job: Job) -> float:
    """Return the share of an exact search's time that the configured search takes."""
    name = job.config.discovery.search
    if name == "fused":
        return 0.0
    if name == "Flat":
        return 1.0
    return min(1.0, IVF_SHARE * math.sqrt(IVF_ROWS / job.shard_rows))


def _streaming_seconds(job: Job, hardware: Hardware) -> float:
    """Return the seconds in which all rows pass every rank, once for each of two passes."""
    if job.world == 1:
        return 0.0
    links, _ = hardware.links_at(job.world, job.size.nodes)
    received = job.num_rows * (1 - 1 / job.world) * (job.row_bytes + 8 * (3 + job.neighbours))
    return 2 * links.gather.at(received)


def _run(job: Job, epoch: float, features: float) -> float:
    """Return the seconds of all epochs and discoveries, and of an evaluation a round.

    `features` are the seconds of a forward pass over all images.
    """
    rounds = range(1, job.rounds)
    discovery = sum(discovery_seconds(job, r * job.config.curriculum.added) for r in rounds)
    looks = job.rounds if job.config.data.test is not None else 0
    return job.config.num_epochs * epoch + discovery + looks * features
