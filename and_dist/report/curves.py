"""How training went: curves over epochs, accuracy by round, and the time line. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from and_dist.report.charts import COLOURS, NEUTRAL, Chart, cycle, date_of, plain, thin
from and_dist.report.history import History, Record
from and_dist.words import percent


def epochs_passed(history: History) -> Callable[[Record], float]:
    """Of a line of metrics.jsonl: epochs since the start, where that can be told."""
    before = [0]
    for round_index in range(history.config.last_round + 1):
        before.append(before[-1] + history.config.epochs_of(round_index))
    step, per_epoch = 0, 0.0
    for record in history.records:
        step = record.get("step", step) if record["event"] == "step" else step
        if record["event"] == "epoch":
            per_epoch = step / (before[record["round"]] + record["epoch"] + 1)

    def passed(record: Record) -> float:
        if record["event"] == "step":
            return float(record["step"] / per_epoch) if per_epoch else 0.0
        return float(before[record["round"]] + record["epoch"] + 1)

    return passed


def round_marks(history: History) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lines where rounds begin, and their names, for a figure over epochs."""
    shapes, texts, at = [], [], 0
    seen = max((r["round"] for r in history.of("step")), default=-1)
    for round_index in range(seen + 1):
        if history.config.epochs_of(round_index):
            shapes.append(
                {"type": "line", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1,
                 "line": {"width": 1, "dash": "dot", "color": "#888"}, "layer": "below"}
            )  # fmt: skip
            texts.append(
                {"x": at, "yref": "paper", "y": 1.0, "text": f"round {round_index}",
                 "showarrow": False, "xanchor": "left", "yanchor": "bottom", "font": {"size": 11}}
            )  # fmt: skip
        at += history.config.epochs_of(round_index)
    return shapes, texts


def curve_over_epochs(
    histories: Sequence[History],
    key: str,
    title: str,
    y_title: str,
    figure_of: Callable[[History, Record], float | None],
    event: str = "step",
    note: str = "",
    **axis: Any,
) -> Chart | None:
    """One line a run, with the rounds of the first marked; None where there is nothing."""
    figure, alts, rows = go.Figure(), [], []
    for history, colour in zip(histories, cycle(), strict=False):
        passed = epochs_passed(history)
        points = [
            (passed(record), value)
            for record in history.of(event)
            if (value := figure_of(history, record)) is not None
        ]
        if not points:
            continue
        x, y = thin([p[0] for p in points], [p[1] for p in points])
        mode = "lines+markers" if len(x) < 30 else "lines"
        figure.add_scatter(x=x, y=y, name=history.name, mode=mode, line={"color": colour})
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
    def speed(history: History, record: Record) -> float:
        return float(record["images_per_s"] / history.ranks)

    def of(key: str, scale: float = 1.0) -> Callable[[History, Record], float | None]:
        return lambda _, r: None if r.get(key) is None else scale * r[key]

    found = [
        curve_over_epochs(histories, "loss", "Loss", "loss", of("loss")),
        curve_over_epochs(
            histories, "lr", "Learning rate", "learning rate", of("lr"), "epoch", type="log",
            minorloglabels="complete", dtick="D2",
        ),
        curve_over_epochs(
            histories, "bank-knn", "Bank-kNN accuracy while training", "bank-kNN %",
            of("knn_bank", 100), "epoch",
            note="kNN with the bank's rows as features of the training images, which costs no pass "
            "over them (evaluation.every).",
        ),
        curve_over_epochs(
            histories, "speed", "Throughput", "images/s a rank", speed, rangemode="tozero",
            note="Of one rank: times the number of ranks for all of them.",
        ),
        curve_over_epochs(
            histories, "wait", "Waiting for data", "% of the time", of("data_wait", 100),
            rangemode="tozero", note="Share of rank 0's time without the next batch.",
        ),
    ]  # fmt: skip
    return [chart for chart in found if chart is not None]


def accuracy_by_round(histories: Sequence[History]) -> Chart | None:
    """Figure 5 of the paper, of these runs."""
    figure, rows = go.Figure(), []
    for history, colour in zip(histories, cycle(), strict=False):
        rounds = [r for r in history.of("round") if r["knn"] is not None]
        if not rounds:
            continue
        for key, says, dash in (("knn", "kNN", "solid"), ("knn_bank", "bank-kNN", "dot")):
            figure.add_scatter(
                x=[r["round"] for r in rounds], y=[100 * r[key] for r in rounds],
                name=f"{history.name}: {says}", mode="lines+markers",
                line={"color": colour, "dash": dash},
            )  # fmt: skip
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
                100 * baselines[key], line_dash="dash", line_width=1, line_color="#888",
                annotation_text=text, annotation_position="bottom right",
            )  # fmt: skip
    figure.update_layout(xaxis_title="after round", yaxis_title="accuracy %")
    figure.update_xaxes(dtick=1)
    said = "; ".join(f"{run} after round {r}: {knn} %" for run, r, knn, _ in rows)
    columns = ("run", "after round", "kNN %", "bank-kNN %")
    return Chart(
        "accuracy", "Accuracy by round", figure, f"kNN accuracy by round. {said}.",
        "Figure 5 of the paper, of this run: kNN on the test images, with features of the training "
        "images computed anew, and with the bank in their place.", (), columns, tuple(rows),
    )  # fmt: skip


def time_line(history: History) -> Chart | None:
    """Starts as bars, incidents as marks."""
    if not history.starts:
        return None
    figure = go.Figure()
    for at, start in enumerate(history.starts):
        until = max(start.ended, start.began + 1)
        figure.add_scatter(
            x=[date_of(start.began), date_of(until)], y=[at + 1, at + 1],
            mode="lines", line={"width": 12, "color": NEUTRAL}, showlegend=False,
            name=f"start {at + 1}", hoverinfo="name",
        )  # fmt: skip
    kinds = {kind: [i for i in history.incidents if i.kind == kind] for kind in _SYMBOLS}
    for kind, incidents in kinds.items():
        if incidents:
            figure.add_scatter(
                x=[date_of(i.when) for i in incidents], mode="markers", name=kind,
                y=[_start_of(history, i.when) for i in incidents],
                text=[plain(i.text) for i in incidents], hovertemplate="%{text}<extra></extra>",
                marker={"symbol": _SYMBOLS[kind][0], "size": 12, "color": _SYMBOLS[kind][1]},
            )  # fmt: skip
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


def _start_of(history: History, when: float) -> int:
    """The number of the start that was under way."""
    return max(1, sum(start.began <= when for start in history.starts))


def _some(x: list[float], y: list[float], most: int = 20) -> Iterable[tuple[float, float]]:
    """Evenly, the last point among them."""
    chosen = np.unique(np.linspace(0, len(x) - 1, min(most, len(x))).round().astype(int))
    return [(x[at], y[at]) for at in chosen]
