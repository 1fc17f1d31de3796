"""Summarise a run in one table, from its metrics: what the demo prints and summary.json holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from and_dist.runs.folder import is_summary
from and_dist.runs.metrics_file import read_metrics
from and_dist.runs.records import write_record
from and_dist.utils.formatting import format_seconds, percent, sparkline

ROUND_KEYS = ("round", "anchors", "consistency", "knn_bank", "knn", "seconds")
BANK_KEYS = ("probe_bank", "mean_norm", "spread", "neighbour_entropy")
"""Keys that rounds of earlier revisions lack."""


def summarise(folder: Path) -> dict[str, Any]:
    """Return {"raw_pixels": {"knn"}, "random": {"knn"}, "rounds": [...], "seconds"} of a run."""
    metrics = folder / "metrics.jsonl"
    baselines = (read_metrics(metrics, "baselines") or [{}])[-1]
    rounds = [
        {key: r[key] for key in ROUND_KEYS} | {key: r.get(key) for key in BANK_KEYS}
        for r in read_metrics(metrics, "round")
    ]
    return {
        "raw_pixels": {"knn": baselines.get("raw_pixels")},
        "random": {"knn": baselines.get("random")},
        "rounds": rounds,
        "seconds": baselines.get("seconds", 0.0) + sum(r["seconds"] for r in rounds),
    }


def write_summary(folder: Path) -> dict[str, Any]:
    """Write summary.json, and return what it holds."""
    summary = summarise(folder)
    write_record(folder / "summary.json", summary, is_summary)
    return summary


def as_table(summary: dict[str, Any], title: str, first: str, has_symbols: bool = True) -> Table:
    """Return the summary as a table for the console, with a sparkline of kNN if it has symbols.

    `first` names the network that training began with.
    """
    shares = [r["knn"] for r in summary["rounds"] if r["knn"] is not None]
    before = summary["random"]["knn"]
    caption = describe_gain(shares, before, first, has_symbols) if shares else None
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("after", no_wrap=True)
    columns = COLUMNS if shares else COLUMNS_WITHOUT_LABELS
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, key in (("raw pixels", "raw_pixels"), (first, "random")):
        if summary[key]["knn"] is not None:
            row = {"kNN": percent(summary[key]["knn"])}
            table.add_row(name, *(row.get(column, "-") for column in columns))
    for r in summary["rounds"]:
        table.add_row(f"round {r['round']}", *(show(r) for show in columns.values()))
    return table


def _share(key: str) -> Callable[[dict[str, Any]], str]:
    """Return a function that shows a figure of a round as a percentage."""
    return lambda r: percent(r.get(key))


def _figure(key: str) -> Callable[[dict[str, Any]], str]:
    """Return a function that shows a figure of a round between 0 and 1."""
    return lambda r: "-" if r.get(key) is None else f"{r[key]:.2f}"


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "anchors": lambda r: f"{r['anchors']:,}",
    "consistency": _share("consistency"),
    "bank-kNN": _share("knn_bank"),
    "probe": _share("probe_bank"),
    "kNN": _share("knn"),
    "time": lambda r: format_seconds(r["seconds"]),
}
"""The columns of the table, shares in %, and how each shows a round; 80 letters are enough."""
COLUMNS_WITHOUT_LABELS: dict[str, Callable[[dict[str, Any]], str]] = {
    "anchors": COLUMNS["anchors"],
    "neighbour entropy": _figure("neighbour_entropy"),
    "spread": _figure("spread"),
    "norm of the mean": _figure("mean_norm"),
    "time": COLUMNS["time"],
}


def describe_gain(
    shares: Sequence[float], before: float | None, first: str, has_symbols: bool
) -> str:
    """Return kNN over the rounds in one line, from that before training where it is known."""
    all_of_them = [*shares] if before is None else [before, *shares]
    start = "round 0" if before is None else f"the {first}"
    curve = f"{sparkline(all_of_them)}  " if has_symbols else ""
    return f"kNN {curve}{percent(all_of_them[0])} % ({start}) to {percent(shares[-1])} %"
