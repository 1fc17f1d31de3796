"""Describe the speed and memory of devices, as rates and curves for plans. No torch.

Devices are measured by `python -m benchmarks.hardware`, or estimated from published figures, whose
sources are stated in words.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from and_dist.config.validation import Section, build
from and_dist.planning.costs import COSTS, FEATURE_DIM, TRAINING

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
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
    """Sources of the figures, in words."""
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


def _line(fixed: float, per_second: float) -> Curve:
    """Return the curve of some fixed seconds and a rate."""
    return Curve(points=((0.0, fixed), (1e9, fixed + 1e9 / per_second)))


def _links(seconds: float, per_second: float) -> Links:
    """Return links with the same line for every collective."""
    line = _line(seconds, per_second)
    return Links(gather=line, exchange=line, reduce=line)


ALEXNET = TRAINING * COSTS["torchvision_alexnet"].multiplications
"""Operations of an image in a training step of the network that figures are published for."""
ACHIEVED = 0.6
"""Share of the data sheet's matrix rate that fused attention reaches, as on the H100 in 16 bits."""
ACHIEVED_LINK = 0.7
"""Share of the data sheet's bandwidth that NCCL's collectives, or a kernel's memory, reach."""
LAUNCHES = 2e-3
"""Seconds of a step in which a GPU waits for the next kernel; a rough figure."""
BYTES_OF_OPTIMISER = 24
"""Bytes of a parameter that a step reads for the norm of the gradients and then, in one pass, reads
and writes (optim.fused)."""
BYTES_OF_A_PAIR = 40
"""Bytes that a scan's tile reads and writes for a pair of rows: logits, their exp, four sums
(entropy.py); a rough figure."""
OPERATIONS_OF_A_PAIR = 2 * FEATURE_DIM
"""Operations of a scan for a pair of rows."""
FFCV = 172_801 / 96
"""Raw images of 256 pixels a second and core, as published for FFCV."""
JPEG_OF_A_CORE = 500.0
"""JPEGs of 500x375 pixels decoded to 224 a second and core, as measured with DALI; rough."""


@dataclass(frozen=True)
class PublishedFigures:
    """Hold published figures of a kind of GPU."""

    memory_gb: float
    """Gigabytes of memory."""
    dense_16: float
    """Tera-operations a second of 16-bit matrix products."""
    dense_32: float
    """Tera-operations a second of 32-bit matrix products."""
    alexnet_16: float
    """Tera-operations a second at which AlexNet is trained in 16 bits."""
    memory_tb_per_s: float
    """Terabytes a second that the memory reads and writes."""
    node_gb_per_s: float
    """Gigabytes a second of each GPU's link within a node, in one direction."""
    network_gb_per_s: float
    """Gigabytes a second of each GPU's link between nodes, in one direction."""
    decodes_per_s: float | None
    """JPEGs a second that the GPU decodes itself; None if the cores decode them."""


def _gpu(name: str, source: str, published: PublishedFigures) -> Hardware:
    """Return the hardware of a node of GPUs, estimated from published figures."""
    dense_16, dense_32 = 1e12 * published.dense_16, 1e12 * published.dense_32
    encoder_16 = 1e12 * published.alexnet_16
    # float32 convolutions may round to TF32, at half the rate of 16 bits; the V100 has no TF32.
    encoder_32 = encoder_16 / 2 if name != "v100" else ACHIEVED * dense_32
    partition: dict[Precision, float] = {"float32": dense_32, "bfloat16": dense_16}
    bytes_per_s = 1e12 * ACHIEVED_LINK * published.memory_tb_per_s
    within = 1e9 * ACHIEVED_LINK * published.node_gb_per_s
    between = 1e9 * ACHIEVED_LINK * published.network_gb_per_s
    rates = Rates(
        operations_per_s={"float32": encoder_32, "bfloat16": encoder_16},
        partition={
            dtype: _partition_of_gpu(ACHIEVED * rate, bytes_per_s, 4 if dtype == "float32" else 2)
            for dtype, rate in partition.items()
        },
        overhead=_line(LAUNCHES, 1e6),
        optimiser=_line(LAUNCHES / 10, bytes_per_s / BYTES_OF_OPTIMISER),
        scan_operations_per_s=1
        / (1 / (ACHIEVED * dense_32) + BYTES_OF_A_PAIR / OPERATIONS_OF_A_PAIR / bytes_per_s),
        search_operations_per_s=ACHIEVED * dense_32,
    )
    return Hardware(
        name=name,
        source=source,
        kind="gpu",
        memory_gb=published.memory_gb,
        cores=12,
        framework_mb=3_000,
        rates={1: rates},
        links={2: _links(20e-6, within)},
        network=_links(40e-6, between),
        loader={
            "encoded": Curve(points=((224**2, 1 / JPEG_OF_A_CORE),)),
            "pixels": Curve(points=((224**2, 1 / FFCV),)),
        },
        decodes_per_s=published.decodes_per_s,
        rounds_rows=name != "v100",
    )


def _partition_of_gpu(operations_per_s: float, bytes_per_s: float, width: int) -> Curve:
    """Return the curve of the partition, which takes the longer of reading and multiplying.

    Each query takes two products with the rows, which are read once.
    """
    reading = 1e6 * width / bytes_per_s
    turn = reading * operations_per_s / 4e6
    return Curve(points=((0, reading), (turn, reading), (2 * turn, 2 * reading)))


_SHEET = "matrix rates, memory and links by the vendor's data sheet at 60 and 70 %; "
_ROUGH = "; launches, JPEG decoding on cores and what the framework takes are rough"

GPUS = {
    "v100": _gpu(
        "v100",
        _SHEET + "AlexNet at the published 9,300 images/s; JPEGs are decoded by the cores" + _ROUGH,
        PublishedFigures(
            memory_gb=32,
            dense_16=125,
            dense_32=15.7,
            alexnet_16=9_300 * ALEXNET / 1e12,
            memory_tb_per_s=0.9,
            node_gb_per_s=150,
            network_gb_per_s=6.25,
            decodes_per_s=None,
        ),
    ),
    "a100": _gpu(
        "a100",
        _SHEET + "AlexNet at the published 11,800 images/s, float32 at half; JPEGs decoded at "
        "the published 7,500 images/s" + _ROUGH,
        PublishedFigures(
            memory_gb=80,
            dense_16=312,
            dense_32=19.5,
            alexnet_16=11_800 * ALEXNET / 1e12,
            memory_tb_per_s=2.0,
            node_gb_per_s=300,
            network_gb_per_s=25,
            decodes_per_s=7_500,
        ),
    ),
    "h100": _gpu(
        "h100",
        _SHEET + "encoders at the A100's share of the matrix rate (no figure is published); JPEG "
        "decoding as an A100" + _ROUGH,
        PublishedFigures(
            memory_gb=80,
            dense_16=989,
            dense_32=67,
            alexnet_16=989 / 312 * 11_800 * ALEXNET / 1e12,
            memory_tb_per_s=3.35,
            node_gb_per_s=450,
            network_gb_per_s=50,
            decodes_per_s=7_500,
        ),
    ),
    "h200": _gpu(
        "h200",
        _SHEET + "the rest as the H100, of which it has all but the memory" + _ROUGH,
        PublishedFigures(
            memory_gb=141,
            dense_16=989,
            dense_32=67,
            alexnet_16=989 / 312 * 11_800 * ALEXNET / 1e12,
            memory_tb_per_s=4.8,
            node_gb_per_s=450,
            network_gb_per_s=50,
            decodes_per_s=7_500,
        ),
    ),
}
"""Known GPUs by name."""
GPUS["a100-40gb"] = GPUS["a100"].model_copy(update={"name": "a100-40gb", "memory_gb": 40.0})
GPUS["v100-16gb"] = GPUS["v100"].model_copy(update={"name": "v100-16gb", "memory_gb": 16.0})


def find_hardware(name: str) -> Hardware:
    """Return the hardware of a name in NAMED, or of a file that benchmarks.hardware wrote.

    Raise ValueError for anything else.
    """
    if name in NAMED:
        return NAMED[name]
    if Path(name).suffix == ".json":
        return read_measured(Path(name))
    raise ValueError(
        f"gpu: {name} is not one of: {', '.join(NAMED)}; nor a file ending in .json, as "
        "`python -m benchmarks.hardware --json FILE` writes it"
    )


def read_measured(file: Path) -> Hardware:
    """Return the hardware in a file of benchmarks.hardware; raise ValueError if it holds none."""
    wanted = "right is a file that `python -m benchmarks.hardware --json FILE` wrote"
    try:
        content = json.loads(file.read_text())
        measured = content["hardware"]
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); {wanted}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} holds no measured hardware; {wanted}") from None
    try:
        return build(Hardware, measured)
    except (ValueError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{file} is of another format ({first}); {wanted}") from None


CPU_FILE = Path(__file__).with_name("cpu.json")
"""The file that `python -m benchmarks.hardware --keep` writes; benchmarks/results has a copy."""
NAMED = {"cpu": read_measured(CPU_FILE), **GPUS}
"""Known hardware by name."""
