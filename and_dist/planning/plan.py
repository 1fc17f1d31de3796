"""Plan: what a job takes before it is submitted, in memory, on the wire and in time. No torch.

Rates of GPUs are published ones, not ours, and say so; what a run has measured itself wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import yaml

from and_dist.config.comparison import differing_keys
from and_dist.config.schema import Config
from and_dist.planning.hardware import Hardware
from and_dist.planning.memory import Footprint, checkpoint_bytes, footprint_of
from and_dist.planning.timing import Pace, Traffic, pace_of, traffic_of
from and_dist.planning.workload import Job, Size, count_rows, kind_of_images
from and_dist.runs.folder import read_starts
from and_dist.runs.metrics_file import read_metrics

MOST_ROWS = 10**12
MOST_RANKS = 2**20


@dataclass(frozen=True)
class Plan:
    job: Job
    footprint: Footprint
    """Of a rank; so is all traffic."""
    traffic: Traffic
    pace: Pace | None
    """None where nobody knows how fast the hardware is."""
    measured_images_per_s: float | None
    """Of the whole world, by the run itself at this size."""
    checkpoint_bytes: int
    memory_gb: float | None
    """Of each GPU or node, where that is given and not what the hardware is known to have."""

    @property
    def device_bytes(self) -> float | None:
        """What a rank may fill, of its GPU or as its share of a node."""
        return _device_bytes(self.job, self.memory_gb)

    @property
    def fits(self) -> bool:
        """Memory does; whether training takes the settings is another question."""
        return self.device_bytes is None or self.footprint.peak() <= self.device_bytes

    def would_fit(self, **changes: int) -> bool:
        """The same job with other `num_rows` or `nodes`."""
        job = self.job.of(**changes)
        room = _device_bytes(job, self.memory_gb)
        return room is None or footprint_of(job).peak() <= room

    def of(self, job: Job) -> Plan:
        """Another job on such devices."""
        return make_plan(job, self.memory_gb)

    @property
    def epoch_seconds(self) -> float | None:
        if self.measured_images_per_s is not None:
            return self.job.num_rows / self.measured_images_per_s
        return self.pace.epoch if self.pace else None

    @property
    def run_seconds(self) -> float | None:
        if self.pace is None or self.epoch_seconds is None:
            epochs = self.epoch_seconds
            return None if epochs is None else self.job.config.num_epochs * epochs
        others = self.pace.run - self.job.config.num_epochs * self.pace.epoch
        return self.job.config.num_epochs * self.epoch_seconds + others

    @property
    def images_per_s(self) -> float | None:
        """Of the whole world."""
        return self.job.num_rows / self.epoch_seconds if self.epoch_seconds else None

    @property
    def device_hours(self) -> float | None:
        return None if self.run_seconds is None else self.run_seconds / 3600 * self.job.world

    @property
    def source(self) -> str:
        """Where the time comes from."""
        if self.measured_images_per_s is not None:
            return "what this run has measured at this size"
        return self.job.hardware.source if self.job.hardware else "nothing"


def make_plan(job: Job, memory_gb: float | None = None) -> Plan:
    """`memory_gb` of each GPU or node wins over what the hardware is known to have."""
    return Plan(
        job,
        footprint_of(job),
        traffic_of(job),
        pace_of(job),
        measured_images_per_s(job),
        checkpoint_bytes(job),
        memory_gb,
    )


def plan_job(
    config: Config,
    size: Size,
    hardware: Hardware | None,
    num_rows: int | None = None,
    memory_gb: float | None = None,
) -> Plan | None:
    """As far as it can be known: None where the images are not to be seen from here. ValueError
    for what cannot be trained."""
    rows = num_rows or count_rows(config.data)
    if rows is None:
        return None
    if num_rows is None and rows < size.world:
        raise ValueError(
            f"data.train={config.data.train} has {rows} images for {size.world} ranks; ask for "
            "fewer nodes, GPUs or workers"
        )
    job = Job(config, rows, size, hardware, kind_of_images(config.data))
    return make_plan(job, memory_gb)


def most_rows(plan: Plan) -> int | None:
    """That fit this world; None where the memory is not known, 0 where none do."""
    if plan.device_bytes is None:
        return None
    low, high = plan.job.world, MOST_ROWS
    if not plan.would_fit(num_rows=low):
        return 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if plan.would_fit(num_rows=middle) else (low, middle)
    return low


def fewest_nodes(plan: Plan) -> int | None:
    """Of as many ranks, on which the rows fit; None where they fit on no number of them."""
    most = min(MOST_RANKS, plan.job.num_rows) // plan.job.size.ranks_of_a_node
    low, high = 0, 1
    while high <= most and not plan.would_fit(nodes=high):
        # far too many hold more than fewer: every one brings queries
        low, high = high, 2 * high
    if high > most:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if plan.would_fit(nodes=middle) else (middle, high)
    return high


def _device_bytes(job: Job, memory_gb: float | None) -> float | None:
    if job.hardware is None and memory_gb is None:
        return None
    gigabytes = memory_gb or (job.hardware.memory_gb if job.hardware else 0.0)
    return 1e9 * gigabytes / (1 if job.on_gpu else job.size.ranks_of_a_node)


def measured_images_per_s(job: Job) -> float | None:
    """Of the run's last start, if it trained the same on as many ranks of such a kind; the slower
    half of its looks left out."""
    run, starts = job.config.folder, read_starts(job.config.folder)
    metrics, file = run / "metrics.jsonl", run / "config.yaml"
    if not (metrics.exists() and file.exists() and starts):
        return None
    is_alike = (
        starts[-1].get("world_size") == job.world
        and (starts[-1].get("device") == "cuda") == job.on_gpu
        and job.num_rows == count_rows(job.config.data)
    )
    try:
        trained = yaml.safe_load(file.read_text())
        if not is_alike or not isinstance(trained, dict) or differing_keys(job.config, trained):
            return None
        began = datetime.fromisoformat(starts[-1]["started"]).timestamp()
        steps = [r for r in read_metrics(metrics, "step") if r["time"] >= began][-100:]
        looks = sorted(r["images_per_s"] for r in steps)
    except (ValueError, KeyError, yaml.YAMLError):  # damaged: nothing is known of it
        return None
    return looks[len(looks) // 2] if looks else None
