"""Plan a job before it is submitted: its memory, traffic and time. No torch.

Plans say which rates were measured, and which published or derived. Speeds that the run has
measured itself take precedence.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from and_dist.config.comparison import differing_keys
from and_dist.config.limits import MOST_ROWS
from and_dist.config.schema import Config
from and_dist.planning.hardware import Hardware, Origin
from and_dist.planning.memory import Footprint, checkpoint_bytes, footprint_of
from and_dist.planning.timing import Pace, Traffic, pace_of, traffic_of
from and_dist.planning.workload import Job, Size, count_rows, kind_of_images
from and_dist.runs.folder import config_of, read_starts, say_if_cut
from and_dist.runs.metrics_file import read_metrics
from and_dist.runs.records import say_left_out

MOST_RANKS = 2**20
"""The most ranks that are searched for a number on which the rows fit."""


@dataclass(frozen=True)
class Plan:
    """Hold the memory, traffic and time of a job; memory and traffic are those of one rank."""

    job: Job
    footprint: Footprint
    """Memory of a rank."""
    traffic: Traffic
    """Traffic of a rank."""
    pace: Pace | None
    """Times of a step and of the run; None if the speed of the hardware is unknown."""
    measured_images_per_s: float | None
    """Images a second of the whole world that the run itself has measured at this size."""
    checkpoint_bytes: int
    """Bytes of a checkpoint on the disk."""
    memory_gb: float | None
    """Memory of each GPU or node as the user gave it; None takes the hardware's."""

    @property
    def device_bytes(self) -> float | None:
        """Return the bytes that a rank may fill, of its GPU or as its share of a node."""
        return _device_bytes(self.job, self.memory_gb)

    @property
    def fits(self) -> bool:
        """Return whether the memory suffices; True if it is unknown.

        Whether training accepts the settings is another question.
        """
        return self.device_bytes is None or self.footprint.peak() <= self.device_bytes

    def would_fit(self, **changes: int) -> bool:
        """Return whether the same job fits with other `num_rows` or `nodes`."""
        job = self.job.of(**changes)
        room = _device_bytes(job, self.memory_gb)
        return room is None or footprint_of(job).peak() <= room

    def of(self, job: Job) -> Plan:
        """Return the plan of another job on the same devices."""
        return make_plan(job, self.memory_gb)

    @property
    def epoch_seconds(self) -> float | None:
        """Return the seconds of an epoch, measured or predicted; None if unknown."""
        if self.measured_images_per_s is not None:
            return self.job.num_rows / self.measured_images_per_s
        return self.pace.epoch if self.pace else None

    @property
    def run_seconds(self) -> float | None:
        """Return the seconds of the whole run; None if unknown."""
        if self.pace is None or self.epoch_seconds is None:
            epochs = self.epoch_seconds
            return None if epochs is None else self.job.config.num_epochs * epochs
        # Discoveries and evaluations keep their predicted times.
        others = self.pace.run - self.job.config.num_epochs * self.pace.epoch
        return self.job.config.num_epochs * self.epoch_seconds + others

    @property
    def images_per_s(self) -> float | None:
        """Return the images a second of the whole world; None if unknown."""
        return self.job.num_rows / self.epoch_seconds if self.epoch_seconds else None

    @property
    def device_hours(self) -> float | None:
        """Return the hours of all devices together; None if unknown."""
        return None if self.run_seconds is None else self.run_seconds / 3600 * self.job.world

    @property
    def source(self) -> str:
        """Return the source of the times, in words."""
        if self.measured_images_per_s is not None:
            return "what this run has measured at this size"
        return self.job.hardware.source if self.job.hardware else "nothing"

    @property
    def origins(self) -> dict[Origin, str]:
        """Return the figures by where they come from; none if the run has measured itself."""
        is_known = self.measured_images_per_s is None and self.job.hardware is not None
        return self.job.hardware.origins if is_known and self.job.hardware else {}


def make_plan(job: Job, memory_gb: float | None = None) -> Plan:
    """Return the plan of a job.

    `memory_gb` of each GPU or node takes precedence over the memory that the hardware is known to
    have.
    """
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
    """Return the plan of a config; None if the images cannot be seen from this machine.

    Raise ValueError if the job cannot be trained.
    """
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
    """Return the most rows that fit this world; None if its memory is unknown, 0 if none fit."""
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
    """Return the fewest nodes, of as many ranks, on which the rows fit; None if there are none."""
    most = min(MOST_RANKS, plan.job.num_rows) // plan.job.size.ranks_of_a_node
    low, high = 0, 1
    while high <= most and not plan.would_fit(nodes=high):
        # Nodes are doubled from one, because memory grows again with very many: each rank brings
        # queries.
        low, high = high, 2 * high
    if high > most:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if plan.would_fit(nodes=middle) else (middle, high)
    return high


def _device_bytes(job: Job, memory_gb: float | None) -> float | None:
    """Return the bytes that a rank of a job may fill; None if the memory is unknown."""
    if job.hardware is None and memory_gb is None:
        return None
    gigabytes = memory_gb or (job.hardware.memory_gb if job.hardware else 0.0)
    return 1e9 * gigabytes / (1 if job.on_gpu else job.size.ranks_of_a_node)


def measured_images_per_s(job: Job) -> float | None:
    """Return the images a second of the run's last start, without the slower half of its records.

    Return None unless it trained the same on as many ranks of the same kind.
    """
    run, starts = job.config.folder, read_starts(job.config.folder)
    metrics, file = run / "metrics.jsonl", run / "config.yaml"
    say_if_cut(run, starts)
    if not (metrics.exists() and starts):
        return None
    is_alike = (
        starts[-1]["world_size"] == job.world
        and (starts[-1]["device"] == "cuda") == job.on_gpu
        and job.num_rows == count_rows(job.config.data)
    )
    try:
        trained = config_of(run).model_dump(mode="json")
        if not is_alike or differing_keys(job.config, trained):
            return None
        began = datetime.fromisoformat(starts[-1]["started"]).timestamp()
        steps = [r for r in read_metrics(metrics, "step") if r["time"] >= began][-100:]
        looks = sorted(r["images_per_s"] for r in steps)
    except (OSError, ValueError) as error:  # of a lost or damaged config, which tells nothing
        say_left_out(file, error)
        return None
    return looks[len(looks) // 2] if looks else None
