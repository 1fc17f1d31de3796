"""Define `and-dist evaluate`."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta
from typing import Annotated

import typer

from and_dist.commands.options import Checkpoint, Overrides, Run, Trust, announce


def evaluate(
    context: typer.Context,
    run: Run,
    overrides: Overrides = None,
    knn: Annotated[bool, typer.Option("--knn", help="Weighted kNN, by bank and anew.")] = False,
    linear: Annotated[
        bool, typer.Option("--linear", help="Linear classifiers on frozen layers.")
    ] = False,
    layers: Annotated[
        str | None, typer.Option(help="Of --linear, such as conv4,conv5; without it all.")
    ] = None,
    ten_crop: Annotated[
        bool, typer.Option("--ten-crop", help="--linear looks at ten views of a test image.")
    ] = False,
    checkpoint: Checkpoint = None,
    _trust: Trust = False,
) -> None:
    """Measure a checkpoint by labels it never saw. The same command goes on with --linear."""
    announce(run)
    from and_dist.distributed.collectives import on_coordinator
    from and_dist.distributed.watchdog import SECONDS_BEYOND_STALL
    from and_dist.distributed.world import open_world
    from and_dist.evaluation.evaluate_run import Request, plan_evaluation, run_evaluation
    from and_dist.runs.console import Display
    from and_dist.runs.lock import hold_lock

    request = Request(knn, linear, layers, ten_crop)
    options = plan_evaluation(run, checkpoint, overrides or [], request)
    settings = options.config.run
    timeout = timedelta(seconds=settings.stall_seconds + SECONDS_BEYOND_STALL)
    with open_world(settings.device, settings.threads, timeout) as world, ExitStack() as held:

        def lock_folder() -> None:
            held.enter_context(hold_lock(options.folder, "evaluated", "wait for it or end it"))

        on_coordinator(world, "opening the folder of the evaluation", lock_folder)
        run_evaluation(options, world, Display(is_shown=world.is_coordinator), context.obj)
