"""What devices can do: measured by `python -m benchmarks.hardware`, or put together from published
figures, each with its source in words. No torch."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from and_dist.config.validation import Section, build
from and_dist.planning.costs import COSTS, FEATURE_DIM, TRAINING

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Precision = Literal["float32", "bfloat16"]


class Curve(Section):
    """Seconds by an amount of work, through measured points."""

    points: Annotated[tuple[tuple[NonNegative, NonNegative], ...], Field(min_length=1)]

    @field_validator("points")
    @classmethod
    def check_order(
        cls, points: tuple[tuple[float, float], ...]
    ) -> tuple[tuple[float, float], ...]:
        if any(before[0] >= after[0] for before, after in pairwise(points)):
            raise ValueError("points of a curve come in ascending order, each amount once")
        return points

    def at(self, amount: float) -> float:
        """Between two points a line, which goes on before the first and after the last; but less is
        never expected before the first than its share."""
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
    """Of a rank with so many threads, while all cores of the machine are as busy."""

    encoders: dict[str, Curve] = Field(default_factory=dict)
    """Seconds of forward and backward pass by images, of encoders that were measured in float32."""
    operations_per_s: dict[Precision, Positive]
    """Of any other encoder."""
    partition: dict[Precision, Curve]
    """Seconds for a million numbers of the shard, by queries; bfloat16 is any type of 16 bits."""
    overhead: Curve
    """Seconds of a step beside all that is named, by queries."""
    optimiser: Curve
    """Seconds of its step by parameters."""
    scan_operations_per_s: Positive
    """Two for each pair of rows and feature, each pair once."""
    search_operations_per_s: Positive
    """Two for each anchor, row and feature, by an exact search."""


class Links(Section):
    """Seconds of a collective by the bytes that a rank receives."""

    gather: Curve
    exchange: Curve
    reduce: Curve


class Hardware(Section):
    """A kind of device, or of node where ranks train on CPUs."""

    name: str
    source: str
    """Where the figures come from, in words."""
    kind: Literal["cpu", "gpu"]
    memory_gb: Positive
    """Of a GPU; of a node where there is none."""
    cores: PositiveInt
    """Of a node, or of each of its GPUs."""
    framework_mb: NonNegative
    """Of a rank before it holds anything: programs, their pools, the pipeline; of GPUs the same
    on the GPU."""
    rates: dict[PositiveInt, Rates]
    """By threads of a rank; of GPUs, 1."""
    links: dict[PositiveInt, Links]
    """By ranks of a world within one node."""
    network: Links | None = None
    """Between nodes; none takes those within one."""
    loader: dict[Literal["encoded", "pixels"], Curve]
    """Seconds of one core for a batch, by the pixels that the encoder sees of it."""
    decodes_per_s: Positive | None = None
    """JPEGs that a GPU decodes itself."""
    rounds_rows: bool = False
    """Whether bank.products=auto rounds many float32 rows to 16 bits."""
    waits: NonNegative = 0.0
    """Seconds of a step, whatever it does, that ranks of a node wait for each other."""
    turns: NonNegative = 0.0
    """Seconds more that two ranks on a core wait for each other's turns."""

    def rates_at(self, threads: int) -> tuple[Rates, float]:
        """Those of the next smaller number that was measured, and how often that many it is."""
        known = max((n for n in self.rates if n <= threads), default=min(self.rates))
        return self.rates[known], threads / known

    def links_at(self, world_size: int, nodes: int) -> tuple[Links, float]:
        """And how often as many rounds of messages it takes as measured."""
        if nodes > 1 and self.network is not None:
            return self.network, math.log2(max(2, nodes))
        known = max((n for n in self.links if n <= world_size), default=min(self.links))
        return self.links[known], math.log2(max(2, world_size)) / math.log2(max(2, known))


def _line(fixed: float, per_second: float) -> Curve:
    """Fixed seconds, and a rate."""
    return Curve(points=((0.0, fixed), (1e9, fixed + 1e9 / per_second)))


def _links(seconds: float, per_second: float) -> Links:
    line = _line(seconds, per_second)
    return Links(gather=line, exchange=line, reduce=line)


ALEXNET = TRAINING * COSTS["torchvision_alexnet"].multiplications
"""Operations of an image of the network that figures are published for."""
ACHIEVED = 0.6
"""Share of the data sheets' matrix rate that fused attention reaches, as of the H100's 16-bit."""
ACHIEVED_LINK = 0.7
"""Share of the data sheets' bandwidth that NCCL's collectives, or a kernel's memory, reach."""
LAUNCHES = 2e-3
"""Seconds of a step in which a GPU waits for the next kernel. Rough."""
BYTES_OF_OPTIMISER = 24
"""That a step reads and writes for a parameter: its gradient for the norm, then all at once
(optim.fused)."""
BYTES_OF_A_PAIR = 40
"""That a scan's tile reads and writes for a pair of rows: logits, their exp, four sums (pairs.py).
Rough."""
OPERATIONS_OF_A_PAIR = 2 * FEATURE_DIM
FFCV = 172_801 / 96
"""256-px raw images a second and core, published for FFCV."""
JPEG_OF_A_CORE = 500.0
"""500x375 pixels decoded to 224 a second and core: what DALI does here. Rough."""


def _gpu(
    name: str,
    source: str,
    memory_gb: float,
    tera_operations: tuple[float, float, float],
    terabytes_per_s: float,
    gigabytes_of_links: tuple[float, float],
    decodes_per_s: float | None,
) -> Hardware:
    """Tera-operations: of 16-bit and of 32-bit matrix products by the data sheet, and of AlexNet in
    16 bits. Links: within a node, between nodes, of each GPU in one direction."""
    dense_16, dense_32, encoder_16 = (1e12 * rate for rate in tera_operations)
    # float32 convolutions: half the rate where they may round to TF32, which the V100 cannot.
    encoder_32 = encoder_16 / 2 if name != "v100" else ACHIEVED * dense_32
    partition: dict[Precision, float] = {"float32": dense_32, "bfloat16": dense_16}
    bytes_per_s = 1e12 * ACHIEVED_LINK * terabytes_per_s
    within, between = (1e9 * ACHIEVED_LINK * rate for rate in gigabytes_of_links)
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
        memory_gb=memory_gb,
        cores=12,
        framework_mb=3_000,
        rates={1: rates},
        links={2: _links(20e-6, within)},
        network=_links(40e-6, between),
        loader={
            "encoded": Curve(points=((224**2, 1 / JPEG_OF_A_CORE),)),
            "pixels": Curve(points=((224**2, 1 / FFCV),)),
        },
        decodes_per_s=decodes_per_s,
    )


def _partition_of_gpu(operations_per_s: float, bytes_per_s: float, width: int) -> Curve:
    """Two products with each query, but never faster than the rows can be read."""
    reading = 1e6 * width / bytes_per_s
    turn = reading * operations_per_s / 4e6
    return Curve(points=((0, reading), (turn, reading), (2 * turn, 2 * reading)))


_SHEET = "matrix rates, memory and links by the vendor's data sheet at 60 and 70 %; "
_ROUGH = "; launches, JPEG decoding on cores and what the framework takes are rough"

GPUS = {
    "v100": _gpu(
        "v100",
        _SHEET + "AlexNet at the published 9,300 images/s; JPEGs are decoded by the cores" + _ROUGH,
        32,
        (125, 15.7, 9_300 * ALEXNET / 1e12),
        0.9,
        (150, 6.25),
        None,
    ),
    "a100": _gpu(
        "a100",
        _SHEET + "AlexNet at the published 11,800 images/s, float32 at half; JPEGs decoded at "
        "the published 7,500 images/s" + _ROUGH,
        80,
        (312, 19.5, 11_800 * ALEXNET / 1e12),
        2.0,
        (300, 25),
        7_500,
    ),
    "h100": _gpu(
        "h100",
        _SHEET + "encoders at the A100's share of the matrix rate (no figure is published); JPEG "
        "decoding as an A100" + _ROUGH,
        80,
        (989, 67, 989 / 312 * 11_800 * ALEXNET / 1e12),
        3.35,
        (450, 50),
        7_500,
    ),
    "h200": _gpu(
        "h200",
        _SHEET + "the rest as the H100, of which it has all but the memory" + _ROUGH,
        141,
        (989, 67, 989 / 312 * 11_800 * ALEXNET / 1e12),
        4.8,
        (450, 50),
        7_500,
    ),
}
GPUS["a100-40gb"] = GPUS["a100"].model_copy(update={"name": "a100-40gb", "memory_gb": 40.0})
GPUS["v100-16gb"] = GPUS["v100"].model_copy(update={"name": "v100-16gb", "memory_gb": 16.0})


def find_hardware(name: str) -> Hardware:
    """A name of NAMED, or a file that benchmarks.hardware wrote; ValueError for anything else."""
    if name in NAMED:
        return NAMED[name]
    if Path(name).suffix == ".json":
        return read_measured(Path(name))
    raise ValueError(
        f"gpu: {name} is not one of: {', '.join(NAMED)}; nor a file ending in .json, as "
        "`python -m benchmarks.hardware --json FILE` writes it"
    )


def read_measured(file: Path) -> Hardware:
    """ValueError says what would be right."""
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
"""What `python -m benchmarks.hardware --keep` wrote, as benchmarks/results/hardware.json has it."""
NAMED = {"cpu": read_measured(CPU_FILE), **GPUS}
