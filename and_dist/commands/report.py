"""Define `and-dist report`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from and_dist.commands.options import Force, Run, Trust, announce

if TYPE_CHECKING:
    from and_dist.distributed.world import World


def report(
    run: Run,
    compare: Annotated[
        list[Path] | None, typer.Option(help="Another run beside it; may be given again.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File; without it RUN/report.html.")] = None,
    follows: Annotated[
        bool, typer.Option("--follow", help="Serve it to this machine, again and again.")
    ] = False,
    port: Annotated[int, typer.Option(help="With --follow; 0 takes any that is free.")] = 0,
    every: Annotated[float, typer.Option(help="With --follow: seconds between two looks.")] = 10.0,
    force: Force = False,
    _trust: Trust = False,
) -> None:
    """Write one HTML page that shows what a run did and learned, and needs nothing else."""
    announce(run)
    from and_dist.report.build import gather, is_report, read_histories, write_page
    from and_dist.report.serve import Pages, follow
    from and_dist.runs.console import Display
    from and_dist.utils.owned_files import check_output, recognise_output

    if follows and out:
        raise ValueError("--follow serves a page and writes none: leave --out away")
    if not 0 <= port <= 65535 or every <= 0:
        raise ValueError(
            f"--port {port} --every {every:g}: --port must be 0 to 65535, --every positive"
        )
    histories, display = read_histories(run, compare or []), Display(is_shown=True)
    may_replace = recognise_output(force, out is not None, is_report)
    out = out or run / "report.html"
    if not follows:
        check_output(out, "--out", may_replace)
    if not (has_torch := find_spec("torch") is not None):
        display.say("torch is not installed here: the page has no neighbourhoods, map or mistakes")
    with _world() if has_torch else nullcontext() as world:
        if follows:
            follow(Pages(run, compare or [], world, display), port, every, display.say)
        size = write_page(histories, gather(histories[0], world, display.phase), out, may_replace)
    display.say(f"written to {out}, {size / 1e6:.1f} MB")


def _world() -> AbstractContextManager[World]:
    """Return a world to read checkpoints in."""
    from and_dist.distributed.world import open_world

    return open_world("cpu")
