"""Draw the charts of training: curves over epochs, accuracy by round and time line. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from and_dist.report.charts import COLOURS, NEUTRAL, Chart, cycle, date_of, plain, thin
from and_dist.report.run_history import F64, History
from and_dist.utils.formatting import percent

Points = tuple[F64, F64]
"""The x and y of a curve."""
CurveOf = Callable[[History], Points]
"""A function that reads one curve of a run."""


def epochs_before(history: History) -> list[int]:
    """Return the number of epochs before each round and, as the last item, of all rounds."""
    epochs = [history.config.epochs_of(r) for r in range(history.config.last_round + 1)]
    return [0, *np.cumsum(epochs).tolist()]


def over_steps(key: str, scale: float = 1.0) -> CurveOf:
    """Return a reader of one key of the logged steps, over the epochs that have passed."""

    def points(history: History) -> Points:
        return history.steps["epochs"], scale * history.steps[key]

    return points


def over_epochs(key: str, scale: float = 1.0) -> CurveOf:
    """Return a reader of one key of the ends of epochs, over the epochs that have passed."""

    def points(history: History) -> Points:
        before = epochs_before(history)
        found = [r for r in history.of("epoch") if r.get(key) is not None]
        passed = [before[r["round"]] + r["epoch"] + 1 for r in found]
        return np.array(passed, float), scale * np.array([r[key] for r in found], float)

    return points


def images_per_s_of_a_rank(history: History) -> Points:
    """Return the speed of one rank over the epochs that have passed."""
    x, y = over_steps("images_per_s")(history)
    return x, y / history.ranks_of_steps


def round_marks(history: History) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return (lines where rounds begin, their names) for a figure over epochs."""
    shapes, texts = [], []
    before, last = epochs_before(history), int(history.last_step.get("round", -1))
    for round_index in range(last + 1):
        at = before[round_index]
        if before[round_index + 1] > at:
            shapes.append(
                {
                    "type": "line",
                    "x0": at,
                    "x1": at,
                    "yref": "paper",
                    "y0": 0,
                    "y1": 1,
                    "line": {"width": 1, "dash": "dot", "color": "#888"},
                    "layer": "below",
                }
            )
            texts.append(
                {
                    "x": at,
                    "yref": "paper",
                    "y": 1.0,
                    "text": f"round {round_index}",
                    "showarrow": False,
                    "xanchor": "left",
                    "yanchor": "bottom",
                    "font": {"size": 11},
                }
            )
    return shapes, texts


def curve(
    histories: Sequence[History],
    key: str,
    title: str,
    y_title: str,
    points_of: CurveOf,
    note: str = "",
    **axis: Any,
) -> Chart | None:
    """Draw one curve for each run and mark the rounds of the first; return None without data."""
    figure, alts, rows = go.Figure(), [], []
    for history, colour in zip(histories, cycle(), strict=False):
        all_x, all_y = points_of(history)
        is_known = np.isfinite(all_y)
        if not is_known.any():
            continue
        x, y = thin(all_x[is_known], all_y[is_known])
        mode = "lines+markers" if len(x) < 30 else "lines"
        figure.add_scatter(x=x, y=y, name=plain(history.name), mode=mode, line={"color": colour})
        alts.append(f"{history.name}: from {y[0]:.4g} to {y[-1]:.4g} over {x[-1]:.4g} epochs")
        rows += [(history.name, f"{a:.4g}", f"{b:.4g}") for a, b in _some(x, y)]
    if not figure.data:
        return None
    shapes, texts = round_marks(histories[0])
    figure.update_layout(shapes=shapes, annotations=texts, xaxis_title="epochs")
    figure.update_yaxes(title=y_title, **axis)
    columns = ("run", "epochs", y_title)
    return Chart(key, title, figure, f"{title}. {'; '.join(alts)}.", note, (), columns, tuple(rows))


def training_curves(histories: Sequence[History]) -> list[Chart]:
    """Draw all curves of training that there is data for."""
    found = [
        curve(histories, "loss", "Loss", "loss", over_steps("loss")),
        curve(
            histories,
            "lr",
            "Learning rate",
            "learning rate",
            over_epochs("lr"),
            type="log",
            minorloglabels="complete",
            dtick="D2",
        ),
        curve(
            histories,
            "bank-knn",
            "Bank-kNN accuracy while training",
            "bank-kNN %",
            over_epochs("knn_bank", 100),
            "kNN with the bank's rows as features of the training images, which costs no pass "
            "over them (evaluation.every).",
        ),
        curve(
            histories,
            "speed",
            "Throughput",
            "images/s a rank",
            images_per_s_of_a_rank,
            "The speed of one rank; multiply it by the number of ranks for that of all ranks.",
            rangemode="tozero",
        ),
        curve(
            histories,
            "wait",
            "Waiting for data",
            "% of the time",
            over_steps("data_wait", 100),
            "Share of rank 0's time without the next batch.",
            rangemode="tozero",
        ),
    ]
    return [chart for chart in found if chart is not None]


def accuracy_by_round(histories: Sequence[History]) -> Chart | None:
    """Draw kNN accuracy by round with the baselines of the first run (figure 5 of the paper).

    Return None if no run has evaluated a round.
    """
    figure, rows = go.Figure(), []
    for history, colour in zip(histories, cycle(), strict=False):
        rounds = [r for r in history.of("round") if r["knn"] is not None]
        if not rounds:
            continue
        for key, says, dash in (("knn", "kNN", "solid"), ("knn_bank", "bank-kNN", "dot")):
            figure.add_scatter(
                x=[r["round"] for r in rounds],
                y=[100 * r[key] for r in rounds],
                name=f"{plain(history.name)}: {says}",
                mode="lines+markers",
                line={"color": colour, "dash": dash},
            )
        rows += [
            (history.name, str(r["round"]), percent(r["knn"]), percent(r["knn_bank"]))
            for r in rounds
        ]
    if not rows:
        return None
    baselines = histories[0].last("baselines")
    for key, says in (("raw_pixels", "raw pixels"), ("random", "random network")):
        if baselines.get(key) is not None:
            text = f"{says} {percent(baselines[key])}"
            figure.add_hline(
                100 * baselines[key],
                line_dash="dash",
                line_width=1,
                line_color="#888",
                annotation_text=text,
                annotation_position="bottom right",
            )
    figure.update_layout(xaxis_title="after round", yaxis_title="accuracy %")
    figure.update_xaxes(dtick=1)
    said = "; ".join(f"{run} after round {r}: {knn} %" for run, r, knn, _ in rows)
    columns = ("run", "after round", "kNN %", "bank-kNN %")
    settings = histories[0].config.evaluation
    return Chart(
        "accuracy",
        "Accuracy by round",
        figure,
        f"kNN accuracy by round. {said}.",
        "Figure 5 of the paper, of this run: kNN on the test images, with features of the training "
        "images computed anew, and with the bank in their place; "
        f"K {settings.knn}, tau {settings.knn_temperature}.",
        (),
        columns,
        tuple(rows),
    )


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
    figure.update_yaxes(title="start", dtick=1, autorange="reversed")
    figure.update_layout(xaxis_title="time (UTC)", hovermode="closest")
    count = len(history.starts)
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


def _some(x: list[float], y: list[float], most: int = 20) -> Iterable[tuple[float, float]]:
    """Return at most `most` points, evenly spaced, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(x) - 1, min(most, len(x))).round().astype(int))
    return [(x[at], y[at]) for at in chosen]
