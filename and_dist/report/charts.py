"""A chart: a Plotly figure, what it says in words, and the same as a table. No torch."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go

from and_dist.report.run_history import F64

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8C6D31",
    "#B8B800",
    "#7B4FB5",
    "#E0507A",
)
"""Those of Okabe and Ito first: they stay apart for most eyes, on light and on dark."""
CONSISTENT, INCONSISTENT, NEUTRAL = COLOURS[2], COLOURS[1], COLOURS[0]
MOST_POINTS = 1000
"""Of one curve; more are averaged."""
DIGITS = 5


@dataclass(frozen=True)
class View:
    """Which traces are seen together, by a name to choose."""

    name: str
    traces: tuple[int, ...]
    shapes: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Chart:
    key: str
    title: str
    figure: go.Figure
    alt: str
    """What the picture says, with its figures."""
    note: str = ""
    """How to read it."""
    views: tuple[View, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = field(default=(), repr=False)
    """The same as a table."""

    def as_json(self) -> dict[str, Any]:
        views = [{"traces": view.traces, "shapes": view.shapes} for view in self.views]
        drawn = self.figure.to_plotly_json()
        del drawn["layout"]["template"]  # colours are the page's own
        return {**_rounded(drawn), "views": views}

    @property
    def shown(self) -> View | None:
        """The view that the figure begins with."""
        visible = {at for at, trace in enumerate(self.figure.data) if trace.visible is not False}
        return next((view for view in self.views if set(view.traces) == visible), None)


def _rounded(drawn: Any) -> Any:
    """To what can be seen."""
    if isinstance(drawn, float):
        return float(f"{drawn:.{DIGITS}g}")
    if isinstance(drawn, dict):
        return {key: _rounded(value) for key, value in drawn.items()}
    return [_rounded(value) for value in drawn] if isinstance(drawn, list | tuple) else drawn


def thin(x: F64, y: F64) -> tuple[list[float], list[float]]:
    """At most MOST_POINTS points, each the mean of as many neighbouring ones."""
    count = max(1, min(len(x), MOST_POINTS))
    means = [[float(part.mean()) for part in np.array_split(v, count)] for v in (x, y)]
    return means[0], means[1]


def plain(text: str) -> str:
    """For Plotly, which takes <b> in a name for bold."""
    return html.escape(text, quote=False)


def date_of(when: float) -> str:
    return str(np.datetime64(round(when), "s")).replace("T", " ")


def cycle() -> Iterator[str]:
    while True:
        yield from COLOURS
