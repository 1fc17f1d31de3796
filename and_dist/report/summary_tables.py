"""Make the tables of a report's summary: rounds, evaluations and a comparison of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from and_dist.config.comparison import differing_keys
from and_dist.report.run_history import History
from and_dist.utils.formatting import format_seconds, percent

Grid = dict[str, Any]
"""A table of the page: caption, columns and rows."""


def summary_tables(histories: Sequence[History]) -> list[Grid]:
    """Return the tables of the summary that have rows."""
    tables = [_table_of_rounds(histories[0])]
    if any(history.evaluations for history in histories):
        tables.append(_table_of_evaluations(histories))
    if len(histories) > 1:
        tables += [_table_of_runs(histories), _table_of_differences(histories)]
    return [table for table in tables if table["rows"]]


def _table_of_rounds(history: History) -> Grid:
    """Return baselines and accuracies by round."""
    baselines = history.last("baselines")
    names = {"raw_pixels": "raw pixels", "random": "random network"}
    rows = [
        (name, "-", "-", "-", percent(baselines[key]), "-")
        for key, name in names.items()
        if baselines.get(key) is not None
    ]
    rows += [
        (
            f"round {r['round']}",
            f"{r['anchors']:,}",
            percent(r["consistency"]),
            percent(r["knn_bank"]),
            percent(r["knn"]),
            format_seconds(r["seconds"]),
        )
        for r in history.of("round")
    ]
    columns = ("after", "anchors", "consistency %", "bank-kNN %", "kNN %", "time")
    settings = history.config.evaluation
    caption = f"By round; kNN with K {settings.knn}, tau {settings.knn_temperature}"
    return {"caption": caption, "columns": columns, "rows": rows}


def _table_of_evaluations(histories: Sequence[History]) -> Grid:
    """Return the results of `and-dist evaluate`."""
    rows = [
        (
            history.name,
            record["checkpoint"],
            of["says"],
            percent(of["top1"]),
            " - ".join(map(percent, of["interval"])),
            percent(of["top5"]),
            f"{of['images']:,}",
            f"{of['unreadable']:,}",
        )
        for history in histories
        for record in history.evaluations
        for of in record["of"].values()
    ]
    columns = (
        "run",
        "checkpoint",
        "by",
        "top-1 %",
        "95 % interval",
        "top-5 %",
        "images",
        "unreadable",
    )
    return {"caption": "Evaluated by and-dist evaluate", "columns": columns, "rows": rows}


def _table_of_runs(histories: Sequence[History]) -> Grid:
    """Return the accuracies of all runs after their last rounds."""
    rows = []
    for history in histories:
        last = history.last("round")
        seconds = sum(r["seconds"] for r in history.of("round"))
        rows.append(
            (
                history.name,
                history.config.method,
                str(history.config.seed),
                history.state,
                percent(last.get("knn")),
                percent(last.get("knn_bank")),
                percent(last.get("consistency")),
                format_seconds(seconds),
            )
        )
    columns = ("run", "method", "seed", "state", "kNN %", "bank-kNN %", "consistency %", "time")
    return {
        "caption": "Runs beside each other, after their last rounds",
        "columns": columns,
        "rows": rows,
    }


def _table_of_differences(histories: Sequence[History]) -> Grid:
    """Return the config keys in which other runs differ from the first."""
    first = histories[0].config.model_dump(mode="json")
    rows = []
    for history in histories[1:]:
        for difference in differing_keys(history.config, first):
            key, _, values = difference.partition(": ")
            rows.append((history.name, key, *values.split(" -> ", 1)))
    columns = ("run", "key", histories[0].name, "here")
    return {"caption": "Trained otherwise", "columns": columns, "rows": rows}
