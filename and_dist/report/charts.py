"""Define a chart: a Plotly figure with a description and a table of its data. No torch."""

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
"""The colours of curves. The first six are of Okabe and Ito's palette: they can be told apart with
most kinds of colour vision, on a light and on a dark page."""
CONSISTENT, INCONSISTENT, NEUTRAL = COLOURS[2], COLOURS[1], COLOURS[0]
MOST_POINTS = 1000
"""The largest number of points of a curve; longer curves are averaged."""
DIGITS = 5
"""The number of significant digits of every plotted number."""
PERCENT, COUNT, LOSS = ".1f", ",.0f", ".3f"
"""How percentages, counts and losses are written, in the words of Python and of Plotly."""
GROUPED = ",~r"
"""How Plotly writes the numbers along an axis of counts: with commas, and no more digits than
needed."""
MOST_LETTERS = 32
"""The largest number of letters of a name on the page; a title or a text beside it has all."""
UNREADABLE = 1e12
"""A number from which on nobody counts its digits."""


@dataclass(frozen=True)
class View:
    """Name a set of traces and shapes that a reader can choose to see."""

    name: str
    traces: tuple[int, ...]
    shapes: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Chart:
    """Hold a figure together with everything that the page shows beside it."""

    key: str
    """The name by which page.html and page.js refer to the chart."""
    title: str
    figure: go.Figure
    alt: str
    """A description of the picture, with its most important numbers, for screen readers."""
    note: str = ""
    """A caption that explains how to read the picture."""
    views: tuple[View, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = field(default=(), repr=False)
    """The data of the figure as the rows of a table."""
    texts: int = 0
    """The number of columns that hold text; the columns behind them hold numbers."""

    def as_json(self) -> dict[str, Any]:
        """Return the rounded figure and its views, as page.js draws them."""
        views = [{"traces": view.traces, "shapes": view.shapes} for view in self.views]
        drawn = self.figure.to_plotly_json()
        del drawn["layout"]["template"]  # page.css and page.js set the colours
        return {**_rounded(drawn), "views": views}

    @property
    def shown(self) -> View | None:
        """Return the view whose traces the figure shows first, or None."""
        visible = {at for at, trace in enumerate(self.figure.data) if trace.visible is not False}
        return next((view for view in self.views if set(view.traces) == visible), None)


def _rounded(drawn: Any) -> Any:
    """Round all floats to DIGITS, which keeps the page small; turn tuples into lists."""
    if isinstance(drawn, float):
        return float(f"{drawn:.{DIGITS}g}")
    if isinstance(drawn, dict):
        return {key: _rounded(value) for key, value in drawn.items()}
    return [_rounded(value) for value in drawn] if isinstance(drawn, list | tuple) else drawn


def thin(x: F64, y: F64) -> tuple[list[float], list[float]]:
    """Return at most MOST_POINTS points, each the mean of an equal share of neighbouring points."""
    count = max(1, min(len(x), MOST_POINTS))
    means = [[float(part.mean()) for part in np.array_split(v, count)] for v in (x, y)]
    return means[0], means[1]


def number(value: float, spec: str) -> str:
    """Return a number as text, without zeros at the end of its decimals where `spec` has a ~.

    A number too large to be read is written with an exponent.
    """
    text = format(value, spec.replace("~", "") if abs(value) < UNREADABLE else ".4g")
    return text.rstrip("0").rstrip(".") if "~" in spec and "." in text else text


def plain(text: str) -> str:
    """Escape a text for Plotly, which would show <b> in a name as bold text."""
    return html.escape(text, quote=False)


def date_of(when: float) -> str:
    """Return seconds since 1970 as date and time in UTC."""
    return str(np.datetime64(round(when), "s")).replace("T", " ")


def cycle() -> Iterator[str]:
    """Yield the colours again and again."""
    while True:
        yield from COLOURS
