"""Draw the charts of discovered neighbourhoods and of the features. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from and_dist.report.charts import (
    COLOURS,
    CONSISTENT,
    COUNT,
    GROUPED,
    INCONSISTENT,
    MOST_LETTERS,
    NEUTRAL,
    PERCENT,
    Chart,
    View,
    cycle,
    plain,
)
from and_dist.report.run_history import History, share_consistent
from and_dist.utils.formatting import elide, percent


def pairs_by_round(history: History) -> Chart | None:
    """Draw the numbers of consistent and inconsistent pairs by round (figure 6 of the paper).

    Without labels the numbers of anchors are drawn, and without a discovery None is returned.
    """
    found = history.of("discovery")
    if not found:
        return None
    rounds = [r["round"] for r in found]
    figure = go.Figure()
    rows: list[tuple[str, ...]] = []
    if found[0]["consistent"] is None:
        anchors = [r["anchors"] for r in found]
        figure.add_bar(x=rounds, y=anchors, name="anchors", marker_color=NEUTRAL)
        alt = "; ".join(f"round {r}: {n:,} anchors" for r, n in zip(rounds, anchors, strict=True))
        columns: tuple[str, ...] = ("round", "anchors")
        rows += [(str(r), f"{n:,}") for r, n in zip(rounds, anchors, strict=True)]
        counted = "anchors"
        note = "Without labels nobody can say which neighbours are of the anchor's class."
    else:
        for key, colour in (("consistent", CONSISTENT), ("inconsistent", INCONSISTENT)):
            figure.add_bar(x=rounds, y=[r[key] for r in found], name=key, marker_color=colour)
        columns = ("round", "consistent", "inconsistent", "consistent %")
        rows += [
            (
                str(r["round"]),
                f"{r['consistent']:,}",
                f"{r['inconsistent']:,}",
                percent(share_consistent(r)),
            )
            for r in found
        ]
        counted = "pairs"
        alt = "; ".join(f"round {row[0]}: {row[1]} of one class, {row[2]} not" for row in rows)
        note = (
            "Figure 6 of the paper, of this run: pairs of an anchor and its neighbour that are of "
            "one class, and those that are not. Labels serve this picture, not the training."
        )
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title="round", dtick=1)
    figure.update_yaxes(title=counted, tickformat=GROUPED, hoverformat=COUNT)
    title = "Neighbourhoods by round"
    return Chart("pairs", title, figure, f"{title}. {alt}.", note, (), columns, tuple(rows))


def consistency_by_entropy(history: History) -> Chart | None:
    """Draw the share of consistent pairs by tenths of entropy, or return None without labels."""
    found = [r for r in history.of("discovery") if r.get("consistency_by_entropy")]
    if not found:
        return None
    figure, rows, alts = go.Figure(), [], []
    for record, colour in zip(found, cycle(), strict=False):
        shares = record["consistency_by_entropy"]
        figure.add_scatter(
            x=list(range(1, len(shares) + 1)),
            y=[100 * share for share in shares],
            name=f"round {record['round']}",
            mode="lines+markers",
            line={"color": colour},
        )
        rows.append((str(record["round"]), *map(percent, shares)))
        alts.append(
            f"round {record['round']}: {percent(shares[0])} % of the lowest entropies, "
            f"{percent(shares[-1])} % of the highest"
        )
    figure.update_layout(xaxis_title="tenth of the anchors, lowest entropy first")
    figure.update_xaxes(dtick=1)
    figure.update_yaxes(title="consistent pairs %", rangemode="tozero", hoverformat=PERCENT)
    width = max(len(row) for row in rows) - 1
    columns = ("round", *(f"tenth {at}" for at in range(1, width + 1)))
    return Chart(
        "consistency",
        "Consistency against entropy",
        figure,
        f"Share of consistent pairs by tenths of entropy. {'; '.join(alts)}.",
        "The method's premise: anchors of low entropy have neighbours of their class. A line that "
        "falls says that it holds.",
        (),
        columns,
        tuple(rows),
    )


def entropy_histograms(history: History, cuts: dict[int, float]) -> Chart | None:
    """Draw the entropies of anchors and other images by round, with the cut between them.

    `cuts` holds the highest entropy of an anchor by round. Return None without a discovery.
    """
    found = history.of("discovery")
    if not found:
        return None
    figure, rows = go.Figure(), []
    views: list[View] = []
    for record in found:
        entropy, at = record["entropy"], len(figure.data)
        edges = np.linspace(entropy["low"], entropy["high"], len(entropy["rows"]) + 1)
        middles = ((edges[:-1] + edges[1:]) / 2).tolist()
        others = [a - b for a, b in zip(entropy["rows"], entropy["anchors"], strict=True)]
        is_seen = record is found[-1]
        for name, counts, colour in (
            ("anchors", entropy["anchors"], NEUTRAL),
            ("instances", others, "#999999"),
        ):
            figure.add_bar(x=middles, y=counts, name=name, marker_color=colour, visible=is_seen)
        cut = cuts.get(record["round"])
        shapes = () if cut is None else (_cut_line(cut),)
        views.append(View(f"round {record['round']}", (at, at + 1), shapes))
        rows.append(
            (
                str(record["round"]),
                f"{entropy['low']:.3f}",
                f"{entropy['mean']:.3f}",
                f"{entropy['high']:.3f}",
                "-" if cut is None else f"{cut:.3f}",
                f"{record['anchors']:,}",
            )
        )
    figure.update_layout(
        barmode="stack",
        bargap=0,
        shapes=list(views[-1].shapes),
    )
    figure.update_xaxes(title="entropy", hoverformat=".3f")
    figure.update_yaxes(title="images", tickformat=GROUPED, hoverformat=COUNT)
    columns = ("round", "lowest", "mean", "highest", "cut", "anchors")
    alt = "; ".join(f"round {r[0]}: from {r[1]} to {r[3]}, cut at {r[4]}" for r in rows)
    return Chart(
        "entropy",
        "Entropy of all images, and the cut",
        figure,
        f"Entropy histograms. {alt}.",
        "Left of the line are the anchors of the round: the images whose similarity to all others "
        "is most concentrated.",
        tuple(views),
        columns,
        tuple(rows),
    )


def feature_map(
    projections: dict[str, list[tuple[float, float]]],
    groups: Sequence[str],
    keys: Sequence[str],
    colour_of: dict[str, str],
) -> Chart:
    """Draw points by group, one view for each projection; `keys` are the page's keys of images."""
    figure = go.Figure()
    views: list[View] = []
    names = sorted(set(groups), key=lambda name: (name not in colour_of, name))
    for method, points in projections.items():
        at = len(figure.data)
        for name in names:
            members = [i for i, group in enumerate(groups) if group == name]
            figure.add_scatter(
                x=[points[i][0] for i in members],
                y=[points[i][1] for i in members],
                customdata=[keys[i] for i in members],
                mode="markers",
                name=plain(elide(name, MOST_LETTERS)),
                hoverinfo="none",
                visible=not views,
                marker={"size": 6, "opacity": 0.75, "color": colour_of.get(name, "#999999")},
            )
        views.append(View(method, tuple(range(at, len(figure.data)))))
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(showticklabels=False, zeroline=False)
    # One unit is equally long on both axes, at any size of the window.
    figure.update_yaxes(showticklabels=False, zeroline=False, scaleanchor="x", scaleratio=1)
    shown = f"{len(keys):,} images of the bank in two dimensions by {' and '.join(projections)}"
    return Chart(
        "map",
        "In two dimensions",
        figure,
        f"{shown}, in {len(names):,} groups.",
        "Point at an image, or focus the map and press the arrow keys. Near points have similar "
        "features; directions mean nothing.",
        tuple(views) if len(views) > 1 else (),
    )


def _cut_line(cut: float) -> dict[str, Any]:
    """Return a vertical line at the highest entropy of an anchor."""
    return {
        "type": "line",
        "x0": cut,
        "x1": cut,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"width": 2, "dash": "dash", "color": COLOURS[1]},
    }
