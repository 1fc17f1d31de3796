"""A loss or gradient that is no number: which batch it came from. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class NonFiniteLoss(Exception):
    """The loss or a gradient of a step is not a number any more, on all ranks."""

    def __init__(self, step: int) -> None:
        self.step = step


def describe_batch(record: dict[str, Any], path: Path) -> str:
    """One of {"round", "epoch", "step", "rows"}, whole in the metrics at `path`."""
    rows = record["rows"]
    shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    return (
        f"the loss or a gradient is not finite at round {record['round']}, epoch "
        f"{record['epoch']}, step {record['step']} of it, rows {shown} (all {len(rows)} in {path})"
    )
