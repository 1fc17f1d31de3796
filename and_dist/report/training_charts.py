"""Draw the charts of training: curves over epochs, and accuracy by round. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle as repeat
from typing import Any

import numpy as np
import plotly.graph_objects as go

from and_dist.report.charts import (
    COUNT,
    GROUPED,
    LOSS,
    PERCENT,
    Chart,
    cycle,
    number,
    plain,
    thin,
)
from and_dist.report.run_history import F64, History, Record, share_in
from and_dist.utils.formatting import percent

Points = tuple[F64, F64]
"""The x and y of a curve."""
CurveOf = Callable[[History], Points]
"""A function that reads one curve of a run."""
EPOCHS = ",.2~f"
"""How a number of epochs is written."""
DASHES = ("solid", "dot", "dash", "dashdot")
"""The lines of several figures of one run."""


@dataclass(frozen=True)
class Plot:
    """Describe a chart over epochs, which may show several figures of each run."""

    key: str
    title: str
    y_title: str
    figures: dict[str, CurveOf]
    """A name in the legend -> the function that reads its curve."""
    spec: str
    """How a value is written, in the words of Python and of Plotly."""
    note: str = ""
    shape: str = "linear"
    """The line between two points; `hv` keeps a value until the next point."""
    axis: dict[str, Any] = field(default_factory=dict)
    """Further settings of the y axis."""


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
    """Return a reader of a share at the ends of epochs, over the epochs that have passed."""

    def points(history: History) -> Points:
        before = epochs_before(history)
        ends = [(before[r["round"]] + r["epoch"] + 1, r) for r in history.of("epoch")]
        return _known(ends, key, scale)

    return points


def over_epochs_and_rounds(key: str) -> CurveOf:
    """Return a reader of a share at the ends of epochs and of rounds, the two in one curve."""

    def points(history: History) -> Points:
        before = epochs_before(history)
        ends = [(before[r["round"] + 1], r) for r in history.of("round")]
        ends += [(before[r["round"]] + r["epoch"] + 1, r) for r in history.of("epoch")]
        x, y = _known(ends, key, 1.0)
        last_x, chosen = np.unique(x, return_index=True)
        return last_x, y[chosen]

    return points


def _known(ends: Iterable[tuple[int, Record]], key: str, scale: float) -> Points:
    """Return the points of the records that hold a share."""
    found = [(x, share) for x, record in ends if (share := share_in(record, key)) is not None]
    return np.array([x for x, _ in found], float), scale * np.array([y for _, y in found], float)


def learning_rates(history: History) -> Points:
    """Return the learning rate from the start of each epoch on, until the end of the last one."""
    before, found = epochs_before(history), history.of("epoch")
    starts = np.array([before[r["round"]] + r["epoch"] for r in found], float)
    rates = np.array([r["lr"] for r in found], float)
    is_new = np.append(True, rates[1:] != rates[:-1])[: len(rates)]
    x, y = np.append(starts[is_new], starts[-1:] + 1), np.append(rates[is_new], rates[-1:])
    return x, y


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


def curve(histories: Sequence[History], plot: Plot) -> Chart | None:
    """Draw the curves of each run and mark the rounds of the first; return None without data."""
    figure, alts, rows = go.Figure(), [], []
    for history, name, trace in _curves(histories, plot):
        all_x, all_y = plot.figures[name](history)
        is_known = np.isfinite(all_y)
        if not is_known.any():
            continue
        x, y = thin(all_x[is_known], all_y[is_known])
        mode = "lines+markers" if len(x) < 30 and plot.shape == "linear" else "lines"
        trace["line"]["shape"] = plot.shape
        figure.add_scatter(x=x, y=y, mode=mode, **trace)
        first, last = number(y[0], plot.spec), number(y[-1], plot.spec)
        alts.append(f"{trace['name']}: from {first} to {last} over {number(x[-1], EPOCHS)} epochs")
        labels = (history.name, name)[: _texts(plot)]
        rows += [(*labels, number(a, EPOCHS), number(b, plot.spec)) for a, b in _some(x, y)]
    if not figure.data:
        return None
    shapes, marks = round_marks(histories[0])
    figure.update_layout(shapes=shapes, annotations=marks)
    figure.update_xaxes(title="epochs", hoverformat=EPOCHS, tickformat=GROUPED)
    figure.update_yaxes(title=plot.y_title, hoverformat=plot.spec, **plot.axis)
    columns = (*("run", "figure")[: _texts(plot)], "epochs", plot.y_title)
    alt = f"{plot.title}. {'; '.join(alts)}."
    return Chart(
        plot.key, plot.title, figure, alt, plot.note, (), columns, tuple(rows), _texts(plot)
    )


def _texts(plot: Plot) -> int:
    """Return the number of columns that say which curve a row of the table belongs to."""
    return min(2, len(plot.figures))


def _curves(
    histories: Sequence[History], plot: Plot
) -> Iterable[tuple[History, str, dict[str, Any]]]:
    """Yield (run, figure, name and line of its trace).

    The curves of one run differ by colour. Those of several runs have a colour for each run, and a
    dash for each figure.
    """
    is_alone = len(histories) == 1
    for history, colour_of_run in zip(histories, cycle(), strict=False):
        for name, colour, dash in zip(plot.figures, cycle(), repeat(DASHES), strict=False):
            names = [name] if is_alone and len(plot.figures) > 1 else [plain(history.name)]
            if not is_alone and len(plot.figures) > 1:
                names.append(name)
            line = {"color": colour} if is_alone else {"color": colour_of_run, "dash": dash}
            yield history, name, {"name": ": ".join(names), "line": line}


def training_curves(histories: Sequence[History]) -> list[Chart]:
    """Draw all curves of training that there is data for."""
    found = [curve(histories, plot) for plot in (*_LEARNING, *_accuracies(histories), *_COSTS)]
    return [chart for chart in found if chart is not None]


_LEARNING = (
    Plot("loss", "Loss", "loss", {"loss": over_steps("loss")}, LOSS),
    Plot(
        "lr",
        "Learning rate",
        "learning rate",
        {"learning rate": learning_rates},
        "~g",
        shape="hv",
        axis={"type": "log", "minorloglabels": "complete", "dtick": "D2"},
    ),
)
_SIGNS = Plot(
    "signs",
    "Signs of collapse",
    "0 to 1",
    {
        "spread": over_epochs_and_rounds("spread"),
        "mean norm": over_epochs_and_rounds("mean_norm"),
        "neighbour entropy": over_epochs_and_rounds("neighbour_entropy"),
    },
    ".3f",
    "Early signs that all images get the same feature are a spread that falls towards 0, a mean "
    "norm that rises towards 1, and a neighbour entropy that stays near 1.",
    axis={"range": [-0.02, 1.02]},
)
_COSTS = (
    Plot(
        "speed",
        "Throughput",
        "images/s a rank",
        {"images/s": images_per_s_of_a_rank},
        COUNT,
        "The speed of one rank; multiply it by the number of ranks for that of all ranks.",
        axis={"rangemode": "tozero", "tickformat": GROUPED},
    ),
    Plot(
        "wait",
        "Waiting for data",
        "% of the time",
        {"waiting": over_steps("data_wait", 100)},
        PERCENT,
        "Share of rank 0's time without the next batch.",
        axis={"rangemode": "tozero", "tickformat": GROUPED},
    ),
)
_KNN_NOTE = (
    "kNN with the bank's rows as features of the training images, which costs no pass over them "
    "(evaluation.every)."
)
_PROBE_NOTE = " The linear probe is a linear classifier of the bank's features."


def _accuracies(histories: Sequence[History]) -> list[Plot]:
    """Return the charts of what is measured at the ends of epochs: accuracies, signs of collapse.

    The accuracy of the linear probe stands beside that of kNN where any run has measured it.
    """
    figures, note = {"bank-kNN": over_epochs("knn_bank", 100)}, _KNN_NOTE
    probe = over_epochs("probe_bank", 100)
    if any(len(probe(history)[0]) for history in histories):
        figures["linear probe"] = probe
        note += _PROBE_NOTE
    accuracy = Plot("bank-knn", "Accuracy while training", "accuracy %", figures, PERCENT, note)
    return [accuracy, _SIGNS]


def accuracy_by_round(histories: Sequence[History]) -> Chart | None:
    """Draw kNN accuracy by round with the baselines of the first run (figure 5 of the paper).

    Return None if no run has evaluated a round.
    """
    rounds_of = [
        (history, [r for r in history.of("round") if share_in(r, "knn") is not None])
        for history in histories
    ]
    known = [r for _, rounds in rounds_of for r in rounds]
    if not known:
        return None
    keys = [key for key in _BY_ROUND if any(share_in(r, key) is not None for r in known)]
    figure, rows = go.Figure(), []
    for (history, rounds), colour in zip(rounds_of, cycle(), strict=False):
        _add_accuracies(figure, plain(history.name), rounds, keys, colour)
        rows += [
            (history.name, str(r["round"]), *(percent(share_in(r, key)) for key in keys))
            for r in rounds
        ]
    _add_baselines(figure, histories[0])
    figure.update_xaxes(title="after round", dtick=1)
    figure.update_yaxes(title="accuracy %", hoverformat=PERCENT)
    said = "; ".join(f"{run} after round {r}: {knn} %" for run, r, knn, *_ in rows)
    settings = histories[0].config.evaluation
    return Chart(
        "accuracy",
        "Accuracy by round",
        figure,
        f"kNN accuracy by round. {said}.",
        "Figure 5 of the paper, of this run: kNN on the test images, with features of the training "
        "images computed anew, and with the bank in their place; "
        f"K {settings.knn}, tau {settings.knn_temperature}."
        + (_PROBE_NOTE if "probe_bank" in keys else ""),
        (),
        ("run", "after round", *(f"{_BY_ROUND[key]} %" for key in keys)),
        tuple(rows),
        1,
    )


_BY_ROUND = {"knn": "kNN", "knn_bank": "bank-kNN", "probe_bank": "linear probe"}
"""A key of a round's accuracy -> what a legend calls it."""


def _add_accuracies(
    figure: go.Figure, run: str, rounds: Sequence[Record], keys: Sequence[str], colour: str
) -> None:
    """Draw the accuracies of one run by round, each in a line of its own dash."""
    for key, dash in zip(keys, DASHES, strict=False):
        known = [(r["round"], s) for r in rounds if (s := share_in(r, key)) is not None]
        if known:
            figure.add_scatter(
                x=[round_index for round_index, _ in known],
                y=[100 * share for _, share in known],
                name=f"{run}: {_BY_ROUND[key]}",
                mode="lines+markers",
                line={"color": colour, "dash": dash},
            )


def _add_baselines(figure: go.Figure, history: History) -> None:
    """Draw the accuracies before training as horizontal lines."""
    baselines = history.last("baselines")
    for key, says in history.names_of_baselines.items():
        if baselines.get(key) is not None:
            figure.add_hline(
                100 * baselines[key],
                line_dash="dash",
                line_width=1,
                line_color="#888",
                annotation_text=f"{says} {percent(baselines[key])} %",
                annotation_position="bottom right",
            )


def _some(x: list[float], y: list[float], most: int = 20) -> Iterable[tuple[float, float]]:
    """Return at most `most` points, evenly spaced, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(x) - 1, min(most, len(x))).round().astype(int))
    return [(x[at], y[at]) for at in chosen]
