"""Summarise a run in one table, from its metrics: what the demo prints and summary.json holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from and_dist.runs.folder import is_summary
from and_dist.runs.metrics_file import read_metrics
from and_dist.utils.formatting import format_seconds, percent, sparkline
from and_dist.utils.owned_files import write_file

ROUND_KEYS = ("round", "anchors", "consistency", "knn_bank", "knn", "seconds")


def summarise(folder: Path) -> dict[str, Any]:
    """Return {"raw_pixels": {"knn"}, "random": {"knn"}, "rounds": [...], "seconds"} of a run."""
    metrics = folder / "metrics.jsonl"
    baselines = (read_metrics(metrics, "baselines") or [{}])[-1]
    rounds = [{key: r[key] for key in ROUND_KEYS} for r in read_metrics(metrics, "round")]
    return {
        "raw_pixels": {"knn": baselines.get("raw_pixels")},
        "random": {"knn": baselines.get("random")},
        "rounds": rounds,
        "seconds": baselines.get("seconds", 0.0) + sum(r["seconds"] for r in rounds),
    }


def write_summary(folder: Path) -> dict[str, Any]:
    """Write summary.json, and return what it holds."""
    summary = summarise(folder)
    write_file(folder / "summary.json", json.dumps(summary, indent=1) + "\n", is_summary)
    return summary


def as_table(summary: dict[str, Any], title: str, has_symbols: bool = True) -> Table:
    """Return the summary as a table for the console, with a sparkline of kNN if it has symbols."""
    shares = [r["knn"] for r in summary["rounds"] if r["knn"] is not None]
    caption = describe_gain(shares, summary["random"]["knn"], has_symbols) if shares else None
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("after", no_wrap=True)
    for column in ("anchors", "consistency %", "bank-kNN %", "kNN %", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row("raw pixels", "-", "-", "-", percent(summary["raw_pixels"]["knn"]), "-")
    table.add_row("random network", "-", "-", "-", percent(summary["random"]["knn"]), "-")
    for r in summary["rounds"]:
        table.add_row(
            f"round {r['round']}",
            f"{r['anchors']:,}",
            percent(r["consistency"]),
            percent(r["knn_bank"]),
            percent(r["knn"]),
            format_seconds(r["seconds"]),
        )
    return table


def describe_gain(shares: Sequence[float], random: float | None, has_symbols: bool) -> str:
    """Return kNN over the rounds in one line, from that of the random network where it is known."""
    all_of_them = [*shares] if random is None else [random, *shares]
    first = "round 0" if random is None else "the random network"
    curve = f"{sparkline(all_of_them)}  " if has_symbols else ""
    return f"kNN {curve}{percent(all_of_them[0])} % ({first}) to {percent(shares[-1])} %"
