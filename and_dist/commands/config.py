"""Define `and-dist config`. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from and_dist.commands.options import ConfigFiles


def config(
    key: Annotated[
        str | None, typer.Argument(help="A key or a section, such as optim.lr or optim.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, with --config or --diff.")
    ] = None,
    files: ConfigFiles = None,
    diff: Annotated[
        Path | None, typer.Option(help="Run folder: show the keys in which it differs.")
    ] = None,
) -> None:
    """Show every key with its default, bounds and meaning; with --config the resolved config."""
    given = list(overrides or [])
    if key is not None and "=" in key:
        given, key = [key, *given], None
    if files or diff:
        if key is not None:
            raise ValueError(f"{key} and --config or --diff: give the one or the other")
        _show_config(files or [], given, diff)
        return
    if given:
        raise ValueError(f"{given[0]} changes a config: name one with --config")
    _show_reference(key)


def _show_reference(key: str | None) -> None:
    """Print keys, each with a line on its values and its meaning below."""
    from rich.console import Console
    from rich.text import Text

    from and_dist.config.reference import describe_keys

    console = Console(highlight=False)
    for one in describe_keys(key):
        console.print(Text.assemble((one.key, "bold"), f" = {one.default}"), soft_wrap=True)
        console.print(Text(f"    {one.takes}", style="dim"), soft_wrap=True)
        if one.meaning:
            console.print(Text(f"    {one.meaning}"), soft_wrap=True)


def _show_config(files: list[Path], overrides: list[str], diff: Path | None) -> None:
    """Print the resolved config as YAML, or the keys in which a run differs from it."""
    import yaml

    from and_dist.config.load import load_config
    from and_dist.config.validation import flatten
    from and_dist.runs.folder import config_of

    resolved = load_config(files, overrides).model_dump(mode="json")
    if diff is None:
        typer.echo(yaml.safe_dump(resolved, sort_keys=False), nl=False)
        return
    ours, theirs = flatten(resolved), flatten(config_of(diff).model_dump(mode="json"))
    for key in ours:
        if ours[key] != theirs[key]:
            typer.echo(f"{key}: {ours[key]} -> {theirs[key]}")
