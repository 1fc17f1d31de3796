"""Define `and-dist neighbours`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from and_dist.commands.options import Checkpoint, Force, Run, Trust, announce


def neighbours(
    run: Run,
    images: Annotated[list[Path], typer.Argument(help="Image files of your own.")],
    count: Annotated[int, typer.Option(help="Neighbours of each.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Picture file with all of them.")] = None,
    force: Force = False,
    checkpoint: Checkpoint = None,
    _trust: Trust = False,
) -> None:
    """Find the training images that a run holds most similar to images of your own."""
    if not as_json:
        announce(run)
    from and_dist.distributed.world import open_world
    from and_dist.evaluation import neighbour_query as query
    from and_dist.runs.console import Display
    from and_dist.utils.owned_files import recognise_output

    may_replace = recognise_output(force, is_named=True)
    query.check_sheet(sheet, len(images), count, may_replace)
    planned = query.plan_query(run, checkpoint, images, count)
    display = Display(is_shown=True, style="quiet" if as_json else "auto")
    with open_world("cpu") as world:
        result = query.find_neighbours(planned, world, display)
        if sheet is not None:
            query.save_sheet(query.draw_query(result), sheet, may_replace)
            display.say(f"drawn in {sheet}")
    if as_json:
        typer.echo(query.as_json(result))
    display.show(query.as_table(result))
