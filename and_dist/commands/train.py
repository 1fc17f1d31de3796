"""Define `and-dist train`."""

from __future__ import annotations

from typing import Annotated

import typer

from and_dist.commands.options import ConfigFiles, Overrides


def train(
    context: typer.Context,
    config: ConfigFiles = None,
    overrides: Overrides = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Say nothing but what goes wrong.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what metrics.jsonl takes, as it comes.")
    ] = False,
) -> None:
    """Train one run, or go on with it: the same command continues what was interrupted."""
    if quiet and as_json:
        raise ValueError("say either --quiet or --json")
    from and_dist.config.load import load_config
    from and_dist.runs.console import Style

    style: Style = "quiet" if quiet else "json" if as_json else "auto"
    resolved = load_config(config or [], overrides or [])
    # torch takes seconds to load, and a bad config is refused at once.
    from and_dist.training.session import run_training

    run_training(resolved, context.obj, style)
