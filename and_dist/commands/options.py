"""Define the options that several commands of `and-dist` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import and_dist
from and_dist.config.trust import trusting
from and_dist.distributed.launch_env import is_rank_zero
from and_dist.utils.formatting import as_text


def _say_version(is_asked: bool) -> None:
    """Print the version and end, if that is asked for."""
    if is_asked:
        typer.echo(f"and-dist {and_dist.__version__}")
        raise typer.Exit


def _trust(context: typer.Context, is_asked: bool) -> None:
    """Let the function that a run's encoder.name names be called, if that is asked for."""
    context.with_resource(trusting(is_asked))


ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        "-c",
        help="YAML file, or the name of a shipped one; several merge from left to right.",
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, such as optim.lr=0.06; wins over files.")
]
Run = Annotated[Path, typer.Argument(help="Run folder, such as runs/demo.")]
Checkpoint = Annotated[str | None, typer.Option(help="Such as r01-e0020; without it the newest.")]
Force = Annotated[bool, typer.Option("--force", help="Replace output files that exist already.")]
LogLevel = Annotated[
    str, typer.Option("--log-level", help="debug, info, warning or error, on standard error.")
]
Version = Annotated[
    bool,
    typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version."),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        callback=_trust,
        help="Call the function that a run has for its encoder.name; it may be anybody's code.",
    ),
]
BadImages = Annotated[str, typer.Option(help="stop or skip.")]


def announce(run: Path) -> None:
    """Say what is loaded, before torch is, which takes seconds; rank 0 alone says it."""
    if is_rank_zero():
        typer.echo(f"loading {as_text(str(run))}")


def parse_bad_images(given: str) -> Literal["stop", "skip"]:
    """Return what --bad-images asks for; ValueError for anything else."""
    if given not in ("stop", "skip"):
        raise ValueError(f"--bad-images {given} is not one of: stop, skip")
    return "stop" if given == "stop" else "skip"
