"""What a job takes before it is submitted: memory of a rank, seconds of an epoch. No torch.

Rates of GPUs are published ones, not ours, and say so; what a run has measured itself wins.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from and_dist.config import Config, DataConfig
from and_dist.metrics import read_metrics
from and_dist.run_folder import read_starts


class Cost(NamedTuple):
    """Of an encoder with feature_dim 128."""

    multiplications: float
    """Of one image, forward, at `side` pixels."""
    parameters: int
    side: int


COSTS = {
    "tiny": Cost(0.62e6, 80_080, 32),
    "small": Cost(15.1e6, 421_792, 32),
    "cifar_resnet18": Cost(555e6, 11_234_496, 32),
    "cifar_resnet50": Cost(1_298e6, 23_762_624, 32),
    "cifar_resnet101": Cost(2_510e6, 42_754_752, 32),
    "cifar_alexnet": Cost(292e6, 37_418_336, 32),
    "resnet18": Cost(1_814e6, 11_242_176, 224),
    "resnet50": Cost(4_087e6, 23_770_304, 224),
    "resnet101": Cost(7_800e6, 42_762_432, 224),
    "alexnet": Cost(1_132e6, 58_815_328, 224),
    "torchvision_alexnet": Cost(711e6, 57_528_256, 224),
}

TRAINING = 6
"""Operations of a step for each multiplication forward: two there, four back."""
ALEXNET = TRAINING * COSTS["torchvision_alexnet"].multiplications


class Rate(NamedTuple):
    """Operations a second of one rank, as it trains."""

    per_second: float
    source: str


RATES = {
    "v100": Rate(9_300 * ALEXNET, "9,300 images/s published for AlexNet on a V100"),
    "a100": Rate(11_800 * ALEXNET, "11,800 images/s published for AlexNet on an A100"),
    "cpu": Rate(48e9, "the demo on two cores, benchmarks/results/demo.json"),
}
"""By the `gpu` of a cluster profile; cpu is one core."""


SECONDS_OF_A_STEP = 0.01
"""Beside its arithmetic: launches, collectives, the loader's hand-over. Rough."""


@dataclass(frozen=True)
class Plan:
    num_rows: int | None
    """None where the images are not to be seen from here."""
    world_size: int
    bank_bytes: int
    """Of a rank; so are all of these."""
    encoder_bytes: int
    table_bytes: int
    epoch_seconds: float | None
    source: str
    """Where that comes from."""

    @property
    def rank_bytes(self) -> int:
        return self.bank_bytes + self.encoder_bytes + self.table_bytes


def make_plan(config: Config, world_size: int, rate_name: str | None, cores: int = 1) -> Plan:
    """ValueError for what cannot be trained, as far as it can be known without its images."""
    if config.encoder.name not in COSTS:
        raise ValueError(f"encoder.name={config.encoder.name!r} is not one of: {', '.join(COSTS)}")
    if rate_name is not None and rate_name not in RATES:
        raise ValueError(f"gpu: {rate_name} is not one of: {', '.join(RATES)}")
    num_rows = count_rows(config.data)
    if num_rows is not None and num_rows < world_size:
        raise ValueError(
            f"data.train={config.data.train} has {num_rows} images for {world_size} ranks; ask for "
            "fewer nodes, GPUs or workers"
        )
    rows = num_rows or 0
    bytes_of_number = 4 if config.bank.dtype == "float32" else 2
    shard = math.ceil(rows / world_size) * config.encoder.feature_dim * bytes_of_number
    # weights, gradients, momentum, and DDP's buckets
    encoder = 16 * COSTS[config.encoder.name].parameters
    table = 8 * rows * config.curriculum.neighbours
    seconds, source = _predict_epoch(config, num_rows, world_size, rate_name, cores)
    return Plan(num_rows, world_size, shard, encoder, table, seconds, source)


def count_rows(data: DataConfig) -> int | None:
    """Of the training set, without reading any image; ValueError if it cannot be one."""
    folder = Path(data.train)
    if data.train.startswith("shapes/") and not folder.exists():
        found = 2_000 if data.train == "shapes/train" else 500
    elif (folder / "manifest.json").exists():
        found = int(json.loads((folder / "manifest.json").read_text())["rows"])
    elif folder.is_dir():
        from and_dist.data.importers.folders import list_folder

        found = len(list_folder(folder, "train"))
    else:
        return None
    return min(found, data.limit or found)


def _predict_epoch(
    config: Config, num_rows: int | None, world_size: int, rate_name: str | None, cores: int
) -> tuple[float | None, str]:
    if num_rows is None:
        return None, f"data.train={config.data.train} is not to be seen from here"
    measured = measured_images_per_s(config.folder, world_size)
    if measured is not None:
        return num_rows / measured, "what this run has measured at this size"
    if rate_name is None:
        return None, "no `gpu` in the cluster profile says how fast a rank is"
    cost, rate = COSTS[config.encoder.name], RATES[rate_name]
    images = math.ceil(config.optim.batch_size / world_size)
    pixels = (config.data.image_size / cost.side) ** 2
    encoder = TRAINING * cost.multiplications * pixels * images
    # Two products over the shard for log Z and its gradient.
    shard = math.ceil(num_rows / world_size)
    partition = 4 * config.optim.batch_size * shard * config.encoder.feature_dim
    per_second = rate.per_second * (cores if rate_name == "cpu" else 1)
    step = SECONDS_OF_A_STEP + (encoder + partition) / per_second
    return step * math.ceil(num_rows / config.optim.batch_size), rate.source


def measured_images_per_s(run: Path, world_size: int) -> float | None:
    """Of the run's last start, if it was as large; the slower half of its looks left out."""
    metrics, starts = run / "metrics.jsonl", read_starts(run)
    if not metrics.exists() or not starts or starts[-1].get("world_size") != world_size:
        return None
    try:
        looks = sorted(r["images_per_s"] for r in read_metrics(metrics, "step")[-100:])
    except (ValueError, KeyError):
        return None
    return looks[len(looks) // 2] if looks else None
