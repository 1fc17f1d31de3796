"""Make the tables of a report's summary: rounds, evaluations and a comparison of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from and_dist.config.comparison import differing_keys
from and_dist.report.run_history import History, share_in
from and_dist.utils.formatting import format_seconds, percent

NOTHING = "-"
"""The text of a cell without a value."""


@dataclass(frozen=True)
class Grid:
    """Hold a table of the page."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int
    """The number of columns that hold text; the columns behind them hold numbers."""


def summary_tables(histories: Sequence[History]) -> list[Grid]:
    """Return the tables of the summary that have rows."""
    tables = [_table_of_rounds(histories[0])]
    if any(history.evaluations for history in histories):
        tables.append(_table_of_evaluations(histories))
    if len(histories) > 1:
        tables += [_table_of_runs(histories), _table_of_differences(histories)]
    return [_without_empty_columns(table) for table in tables if table.rows]


def _without_empty_columns(table: Grid) -> Grid:
    """Leave out the columns of numbers that have no value in any row."""
    kept = [
        at
        for at in range(len(table.columns))
        if at < table.texts or any(row[at] != NOTHING for row in table.rows)
    ]
    rows = tuple(tuple(row[at] for at in kept) for row in table.rows)
    return replace(table, columns=tuple(table.columns[at] for at in kept), rows=rows)


def _table_of_rounds(history: History) -> Grid:
    """Return baselines and accuracies by round."""
    baselines = history.last("baselines")
    none = NOTHING
    rows = [
        (name, percent(baselines[key]), none, none, none, none, none)
        for key, name in history.names_of_baselines.items()
        if baselines.get(key) is not None
    ]
    rows += [
        (
            f"round {r['round']}",
            percent(r["knn"]),
            percent(r["knn_bank"]),
            percent(share_in(r, "probe_bank")),
            percent(r["consistency"]),
            f"{r['anchors']:,}",
            format_seconds(r["seconds"]),
        )
        for r in history.of("round")
    ]
    columns = (
        "after",
        "kNN %",
        "bank-kNN %",
        "linear probe %",
        "consistency %",
        "anchors",
        "time",
    )
    settings = history.config.evaluation
    caption = "By round"
    if any(row[1] != none for row in rows):
        caption += f"; kNN with K {settings.knn}, tau {settings.knn_temperature}"
    return Grid(caption, columns, tuple(rows), 1)


def _table_of_evaluations(histories: Sequence[History]) -> Grid:
    """Return the results of `and-dist evaluate`."""
    rows = tuple(
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
    )
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
    return Grid("Evaluated by and-dist evaluate", columns, rows, 3)


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
                history.state,
                percent(last.get("knn")),
                percent(last.get("knn_bank")),
                percent(share_in(last, "probe_bank")),
                percent(last.get("consistency")),
                str(history.config.seed),
                format_seconds(seconds),
            )
        )
    columns = (
        "run",
        "method",
        "state",
        "kNN %",
        "bank-kNN %",
        "linear probe %",
        "consistency %",
        "seed",
        "time",
    )
    return Grid("Runs beside each other, after their last rounds", columns, tuple(rows), 3)


def _table_of_differences(histories: Sequence[History]) -> Grid:
    """Return the config keys in which other runs differ from the first."""
    first = histories[0].config.model_dump(mode="json")
    rows = []
    for history in histories[1:]:
        for difference in differing_keys(history.config, first):
            key, _, values = difference.partition(": ")
            rows.append((history.name, key, *values.split(" -> ", 1)))
    columns = ("run", "key", histories[0].name, "here")
    return Grid("Trained otherwise", columns, tuple(rows), len(columns))
