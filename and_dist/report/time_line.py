"""Draw the starts and incidents of a run along time. No torch."""

from __future__ import annotations

import plotly.graph_objects as go

from and_dist.report.charts import COLOURS, NEUTRAL, Chart, date_of, plain
from and_dist.report.run_history import History


def time_line(history: History) -> Chart | None:
    """Draw starts as bars and incidents as marks, or return None without a start."""
    if not history.starts:
        return None
    figure = go.Figure()
    for at, start in enumerate(history.starts):
        until = max(start.ended, start.began + 1)
        figure.add_scatter(
            x=[date_of(start.began), date_of(until)],
            y=[at + 1, at + 1],
            mode="lines",
            line={"width": 12, "color": NEUTRAL},
            showlegend=False,
            name=f"start {at + 1}",
            hoverinfo="name",
        )
    kinds = {kind: [i for i in history.incidents if i.kind == kind] for kind in _SYMBOLS}
    for kind, incidents in kinds.items():
        if incidents:
            figure.add_scatter(
                x=[date_of(i.when) for i in incidents],
                mode="markers",
                name=kind,
                y=[_start_of(history, i.when) for i in incidents],
                text=[plain(i.text) for i in incidents],
                hovertemplate="%{text}<extra></extra>",
                marker={"symbol": _SYMBOLS[kind][0], "size": 12, "color": _SYMBOLS[kind][1]},
            )
    count = len(history.starts)
    figure.update_yaxes(title="start", dtick=1, range=[count + 0.6, 0.4])
    figure.update_layout(xaxis_title="time (UTC)", hovermode="closest")
    alt = f"{count} start{'s' if count > 1 else ''}; " + "; ".join(
        f"{date_of(i.when)} {i.text}" for i in history.incidents[:20]
    )
    return Chart("time-line", "Starts, ends and incidents", figure, f"{alt}.")


_SYMBOLS = {
    "ended": ("square", "#999999"),
    "went back": ("triangle-left", COLOURS[4]),
    "stalled": ("x", COLOURS[1]),
    "judged": ("diamond", COLOURS[3]),
}
"""A kind of incident -> its symbol and colour. The bars show the starts."""


def _start_of(history: History, when: float) -> int:
    """Return the number of the start that was running, 1 for the first."""
    return max(1, sum(start.began <= when for start in history.starts))
