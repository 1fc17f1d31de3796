"""Define `and-dist table`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from and_dist.commands.options import Force


def table(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of sweeps.")],
    format_name: Annotated[
        str, typer.Option("--format", help="markdown, csv or latex.")
    ] = "markdown",
    out: Annotated[Path | None, typer.Option(help="File; without it the terminal.")] = None,
    force: Force = False,
) -> None:
    """Put finished runs into the paper's tables, beside its figures, with means over seeds."""
    from and_dist.report.render_tables import FORMATS
    from and_dist.report.tables import collect
    from and_dist.utils.formatting import safe_lines
    from and_dist.utils.owned_files import check_output, recognise_output, write_file

    may_replace = recognise_output(force, is_named=True)
    if out is not None:
        check_output(out, "--out", may_replace)
    if format_name not in FORMATS:
        raise ValueError(f"--format {format_name} is not one of: {', '.join(FORMATS)}")
    text = FORMATS[format_name](collect(runs))
    if out is None:
        typer.echo(safe_lines(text), nl=False)
    else:
        write_file(out, text, may_replace)
