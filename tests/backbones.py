"""The networks of docs/backbones.md, as its table lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml

PAGE = Path(__file__).parents[1] / "docs" / "backbones.md"


class Backbone(NamedTuple):
    """A row of the table."""

    name: str
    options: dict[str, Any]
    side: int
    parameters: float
    """In millions."""
    stages: int

    def __str__(self) -> str:
        return self.name


def read_table() -> tuple[Backbone, ...]:
    """The rows of the page's first table."""
    rows = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if cells[0].startswith(("torchvision/", "timm/")) and len(cells) > 4:
            name, options, side, parameters, stages = cells[:5]
            given = yaml.safe_load(options) or {}
            rows.append(Backbone(name, given, int(side), float(parameters), int(stages)))
    return tuple(rows)


BACKBONES = read_table()
