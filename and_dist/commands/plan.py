"""`and-dist plan`: what a job would take, on hardware that need not be here. No torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from and_dist.commands.options import ConfigFiles, Overrides
from and_dist.config.limits import (
    MOST_CORES,
    MOST_GB,
    MOST_GPUS,
    MOST_NODES,
    MOST_RANKS_OF_A_NODE,
    MOST_ROWS,
)

if TYPE_CHECKING:
    from and_dist.planning.hardware import Hardware

DEVICES = "cpu, v100, a100, h100, h200, a100-40gb, v100-16gb"


def plan(
    config: ConfigFiles = None,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, max=MOST_NODES, help="Nodes.")] = 1,
    gpus: Annotated[
        int, typer.Option(min=0, max=MOST_GPUS, help="GPUs of a node; 0 trains on CPUs.")
    ] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_RANKS_OF_A_NODE, help="Ranks of a node, where it has no GPUs."
        ),
    ] = None,
    cores: Annotated[
        int | None, typer.Option(min=1, max=MOST_CORES, help="Cores of a node.")
    ] = None,
    rows: Annotated[
        str | None, typer.Option(help="Images, such as 1e9; without it those of data.train.")
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help=f"{DEVICES}, or a FILE.json of benchmarks.hardware."),
    ] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(help="GB of a GPU, or of a node without any.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")] = False,
) -> None:
    """Predict a job before it is queued: memory, traffic, time, and what to change."""
    from rich.console import Console

    from and_dist.config.load import load_config
    from and_dist.planning.plan import plan_job
    from and_dist.planning.printout import as_plain, show
    from and_dist.planning.workload import Size

    resolved = load_config(config or [], overrides or [])
    hardware = choose_hardware(gpu, gpus)
    if gpus and workers and workers > gpus:
        raise ValueError(f"--workers {workers} on --gpus {gpus}: a rank needs a GPU of its own")
    if gpu_memory is not None and not 0 < gpu_memory <= MOST_GB:
        raise ValueError(f"--gpu-memory {gpu_memory:g} is no size; right is one in GB, such as 80")
    size = Size(nodes, workers or gpus or 1, cores)
    planned = plan_job(resolved, size, hardware, parse_rows(rows), gpu_memory)
    if planned is None:
        raise ValueError(
            f"data.train={resolved.data.train} is not to be seen from here; say how many images it "
            "has with --rows, such as --rows 1281167"
        )
    if as_json:
        typer.echo(json.dumps(as_plain(planned), indent=1))
    else:
        show(planned, Console(highlight=False))


def choose_hardware(name: str | None, gpus: int) -> Hardware:
    """Return the hardware to plan for; raise ValueError if it and the number of GPUs disagree."""
    from and_dist.planning.catalogue import NAMED, find_hardware

    if name is None and gpus:
        known = ", ".join(name for name, known in NAMED.items() if known.kind == "gpu")
        raise ValueError(
            f"--gpus {gpus}: say which with --gpu, one of: {known}, or a FILE.json of "
            "benchmarks.hardware"
        )
    hardware = find_hardware(name or "cpu")
    if gpus and hardware.kind == "cpu":
        raise ValueError(f"--gpu {name} has no GPU: leave --gpus away, and say --workers")
    if not gpus and hardware.kind == "gpu":
        raise ValueError(f"--gpu {name}: say with --gpus how many of them a node has")
    return hardware


def parse_rows(given: str | None) -> int | None:
    """1281167, 1_281_167 or 1e9."""
    if given is None:
        return None
    try:
        number = float(given)
        if 1 <= number <= MOST_ROWS and number == int(number):
            return int(number)
    except ValueError:
        pass
    raise ValueError(
        f"--rows {given} is no number of images; right are 1281167 or 1e9, and {MOST_ROWS:g} at "
        "most"
    )
