"""Define `and-dist export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from and_dist.commands.options import Checkpoint, Force, Run, Trust, announce


def export(
    run: Run,
    format_name: Annotated[
        str, typer.Option("--format", help="torchvision, timm, safetensors or onnx.")
    ] = "safetensors",
    checkpoint: Checkpoint = None,
    head: Annotated[bool, typer.Option(help="With the last layer, or what comes before.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder for encoder and card.")] = None,
    force: Force = False,
    _trust: Trust = False,
) -> None:
    """Write the encoder of a checkpoint for other programs, with a card that says what it is."""
    announce(run)
    from and_dist.checkpoint.export import plan_export, run_export
    from and_dist.distributed.world import open_world

    planned = plan_export(run, checkpoint, format_name, head, out, force)
    with open_world("cpu") as world:
        run_export(planned, world)
    typer.echo(f"written to {planned.out}")
