"""What several commands of `and-dist` take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="YAML file; several merge from left to right."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace output files that exist already.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, such as optim.lr=0.06; wins over files.")
]
