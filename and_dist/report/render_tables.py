"""Render tables of accuracies as Markdown, CSV or LaTeX. No torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

from and_dist.report.tables import Cell, Collection, Figure

LATEX_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\^{}",
    "\\": r"\textbackslash{}",
}


def as_markdown(collection: Collection) -> str:
    """Return all sheets as Markdown tables, followed by notes and a legend."""
    parts = []
    for sheet in collection.sheets:
        heads = ["", *sheet.columns]
        lines = [_in_bars(heads), _in_bars(["---", *["---:"] * len(sheet.columns)])]
        for row, cells in sheet.rows.items():
            texts = [_text(cells.get(column), " ± ") for column in sheet.columns]
            lines.append(_in_bars([row, *texts]))
        parts.append("\n".join([f"## {sheet.title}", "", *lines]))
    return "\n\n".join([*parts, *collection.notes, _legend(collection)]) + "\n"


def as_csv(collection: Collection) -> str:
    """Return one CSV line for each cell, for other programs to read."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "row", "column", "published", "mean", "deviation", "seeds"])
    for sheet in collection.sheets:
        for row, cells in sheet.rows.items():
            for column, cell in cells.items():
                writer.writerow([sheet.title, row, column, cell.published, *_numbers(cell.here)])
    return out.getvalue()


def as_latex(collection: Collection) -> str:
    """Return all sheets as LaTeX tables that need the booktabs package."""
    parts = []
    for sheet in collection.sheets:
        rows = [" & ".join(["", *map(_escape, sheet.columns)]) + r" \\", r"\midrule"]
        for row, cells in sheet.rows.items():
            texts = [_text(cells.get(column), r" $\pm$ ") for column in sheet.columns]
            rows.append(" & ".join([_escape(row), *texts]) + r" \\")
        align = "l" + "r" * len(sheet.columns)
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    rf"\caption{{{_escape(sheet.title)}}}",
                    rf"\begin{{tabular}}{{{align}}}",
                    r"\toprule",
                    *rows,
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    notes = [f"% {note}" for note in [*collection.notes, _legend(collection)]]
    return "\n\n".join([*parts, "\n".join(notes)]) + "\n"


FORMATS: dict[str, Callable[[Collection], str]] = {
    "markdown": as_markdown,
    "csv": as_csv,
    "latex": as_latex,
}


def _text(cell: Cell | None, plus_minus: str) -> str:
    """Return a cell as text, "published / here ± deviation (seeds)", without unknown parts."""
    if cell is None:
        return "-"
    here = "-"
    if cell.here is not None:
        spread = "" if cell.here.deviation is None else f"{plus_minus}{cell.here.deviation:.1f}"
        here = f"{cell.here.mean:.1f}{spread} ({len(cell.here.values)})"
    return here if cell.published is None else f"{cell.published:.1f} / {here}"


def _legend(collection: Collection) -> str:
    """Return the sentences that explain the cells."""
    has_published = any(
        cell.published is not None
        for sheet in collection.sheets
        for cells in sheet.rows.values()
        for cell in cells.values()
    )
    seeds = "In brackets the number of seeds."
    return f"Published / here. {seeds}" if has_published else seeds


def _numbers(here: Figure | None) -> list[float | int | None]:
    """Return mean, deviation and number of seeds, None for those that are unknown."""
    if here is None:
        return [None, None, 0]
    deviation = None if here.deviation is None else round(here.deviation, 3)
    return [round(here.mean, 3), deviation, len(here.values)]


def _in_bars(texts: Sequence[str]) -> str:
    """Return one row of a Markdown table."""
    return "| " + " | ".join(text.replace("|", r"\|") for text in texts) + " |"


def _escape(text: str) -> str:
    """Escape the special characters of LaTeX."""
    return "".join(LATEX_SPECIAL.get(c, c) for c in text)
