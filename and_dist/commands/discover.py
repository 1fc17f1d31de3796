"""Define `and-dist discover`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from and_dist.commands.options import Checkpoint, Force, Overrides, Run, announce


def discover(
    run: Run,
    overrides: Overrides = None,
    checkpoint: Checkpoint = None,
    round_index: Annotated[
        int | None, typer.Option("--round", help="Without it the one that training comes to next.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for what is found.")] = None,
    force: Force = False,
) -> None:
    """Find the neighbourhoods of a saved bank, as training does, and write them as .npy files."""
    announce(run)
    from and_dist.checkpoint.reader import open_checkpoint
    from and_dist.distributed.launch_env import read_launch_env
    from and_dist.distributed.world import open_world
    from and_dist.evaluation.discover_run import MAY_CHANGE, plan_discovery, run_discovery
    from and_dist.runs.console import Display

    size = read_launch_env().size
    opened = open_checkpoint(run, checkpoint, overrides or [], MAY_CHANGE)
    options = plan_discovery(opened, round_index, out, size, force)
    with open_world(options.config.run.device, options.config.run.threads) as world:
        run_discovery(options, world, Display(is_shown=world.is_coordinator))
