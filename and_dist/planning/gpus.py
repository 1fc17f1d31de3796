"""Estimate the speed of GPUs from published figures and from our own measurements. No torch.

benchmarks.hardware measures a GPU as a whole; what it keeps takes their place (catalogue.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from and_dist.planning.costs import COSTS, FEATURE_DIM, TRAINING
from and_dist.planning.hardware import Curve, Hardware, Links, Origin, Precision, Rates


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
    memory_tb_per_s: float
    """Terabytes a second that the memory reads and writes."""
    node_gb_per_s: float
    """Gigabytes a second of each GPU's link within a node, in one direction."""
    network_gb_per_s: float
    """Gigabytes a second of each GPU's link between nodes, in one direction."""
    alexnet: float | None = None
    """Images a second at which AlexNet is trained in 16 bits."""
    decodes_per_s: float | None = None
    """JPEGs a second that the GPU decodes itself; None if the cores decode them."""


@dataclass(frozen=True)
class MeasuredFigures:
    """Hold what we have measured on a kind of GPU, for features of 128 numbers."""

    operations_16: float
    """Operations a second of an encoder in bfloat16."""
    operations_32: float
    """Operations a second of an encoder in float32 with TF32."""
    partition: dict[Precision, tuple[tuple[float, float], ...]]
    """Pairs of queries and the seconds that they take over ImageNet's rows, by type."""
    scan_s: float
    """Seconds of a scan of ImageNet's rows with their nearest rows."""
    search_s: float
    """Seconds of an exact search for the nearest of all of ImageNet's rows."""
    decodes_per_s: float
    """JPEGs a second that the GPU decodes itself."""


IMAGENET = 1_281_167


def _gpu(name: str, published: PublishedFigures) -> Hardware:
    """Return the hardware of a node of GPUs, estimated from published figures."""
    dense_16, dense_32 = 1e12 * published.dense_16, 1e12 * published.dense_32
    # Where no figure is published, the encoder reaches the share of the matrix rate of an A100.
    share = A100.dense_16 / published.dense_16
    encoder_16 = ALEXNET * (published.alexnet or A100_ALEXNET / share)
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
    decoding = "" if published.decodes_per_s is None else ", JPEG decoding"
    from_sheet = "partition, scan, search, links, optimiser (60 and 70 % of the data sheet)"
    origins: dict[Origin, str] = {
        "published": f"memory{', encoders (AlexNet)' if published.alexnet else ''}{decoding}, "
        "loading of pixels",
        "derived": from_sheet
        if published.alexnet
        else f"encoders (an A100's share of the matrix rate), {from_sheet}",
        "rough": "launches, JPEG decoding on cores, what the framework takes",
    }
    return Hardware(
        name=name,
        source="published figures and what follows from them",
        origins=origins,
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


def _with_measured(estimated: Hardware, measured: MeasuredFigures, where: str) -> Hardware:
    """Return the hardware with figures that were measured, on itself or on its like."""
    pairs = IMAGENET**2 * FEATURE_DIM
    millions = IMAGENET * FEATURE_DIM / 1e6
    partition = {
        dtype: Curve(points=tuple((queries, seconds / millions) for queries, seconds in points))
        for dtype, points in measured.partition.items()
    }
    rates = estimated.rates[1].model_copy(
        update={
            "operations_per_s": {
                "float32": measured.operations_32,
                "bfloat16": measured.operations_16,
            },
            "partition": partition,
            "scan_operations_per_s": pairs / measured.scan_s,
            "search_operations_per_s": 2 * pairs / measured.search_s,
        }
    )
    origins: dict[Origin, str] = {
        "measured": "encoders (AlexNet), partition, scan, search, JPEG decoding",
        "published": "memory, loading of pixels",
        "derived": "links, optimiser (70 % of the data sheet)",
        "rough": "launches, what the framework takes",
    }
    return estimated.model_copy(
        update={
            "source": where,
            "origins": origins,
            "rates": {1: rates},
            "decodes_per_s": measured.decodes_per_s,
        }
    )


A100_ALEXNET, V100_ALEXNET = 11_800, 9_300
"""Images a second of AlexNet in 16 bits, as published."""
A100_DECODES = 7_500
"""JPEGs a second that an A100 decodes, as published."""
A100 = PublishedFigures(
    memory_gb=80,
    dense_16=312,
    dense_32=19.5,
    alexnet=A100_ALEXNET,
    memory_tb_per_s=2.0,
    node_gb_per_s=300,
    network_gb_per_s=25,
    decodes_per_s=A100_DECODES,
)
V100 = PublishedFigures(
    memory_gb=32,
    dense_16=125,
    dense_32=15.7,
    alexnet=V100_ALEXNET,
    memory_tb_per_s=0.9,
    node_gb_per_s=150,
    network_gb_per_s=6.25,
)
H100 = PublishedFigures(
    memory_gb=80,
    dense_16=989,
    dense_32=67,
    memory_tb_per_s=3.35,
    node_gb_per_s=450,
    network_gb_per_s=50,
    decodes_per_s=A100_DECODES,
)
H200 = replace(H100, memory_gb=141, memory_tb_per_s=4.8)
ALEXNET_HERE = TRAINING * COSTS["alexnet"].multiplications * 256
"""Operations of a training step of our AlexNet with 256 images."""
MEASURED_H100 = MeasuredFigures(
    operations_16=ALEXNET_HERE / 10.13e-3,
    # A step of 21.4 ms less the partition's 3.8 and the 0.8 that a step in bfloat16 takes beside.
    operations_32=ALEXNET_HERE / 16.8e-3,
    partition={
        "bfloat16": ((256, 0.355e-3), (4096, 4.67e-3)),
        "float32": ((256, 3.765e-3),),
    },
    scan_s=28.2,
    search_s=19.5,
    decodes_per_s=8_585,
)
"""Figures of benchmarks/results/gpu/h100.txt, and the forms of the partition that are fastest."""
FROM_H100 = "one H100 of ours (benchmarks/results/gpu/h100.txt), and published figures"

GPUS = {
    "v100": _gpu("v100", V100),
    "a100": _gpu("a100", A100),
    "h100": _with_measured(_gpu("h100", H100), MEASURED_H100, FROM_H100),
    "h200": _with_measured(
        _gpu("h200", H200), MEASURED_H100, f"{FROM_H100}; an H200 has all but its memory"
    ),
}
"""Known GPUs by name."""
GPUS["a100-40gb"] = GPUS["a100"].model_copy(update={"name": "a100-40gb", "memory_gb": 40.0})
GPUS["v100-16gb"] = GPUS["v100"].model_copy(update={"name": "v100-16gb", "memory_gb": 16.0})
