"""Tell which figures of metrics.jsonl the trackers show as curves, and at which step. No torch."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]
GROUPS = {
    "step": "train",
    "epoch": "epoch",
    "round": "round",
    "discovery": "discovery",
    "goodput": "goodput",
}
"""Events that have curves, and what the names of the curves begin with."""
BY_ROUND = ("round", "discovery")
NO_CURVES = {"event", "time", "round", "epoch", "step"}
PICTURES = "discovery/neighbourhoods"
"""The name under which the trackers show the pictures of neighbourhoods."""


def step_of(record: Record, last: int) -> int:
    """Return the step over all rounds; events without one belong to the last step before."""
    return int(record["step"]) if record["event"] == "step" else last


def curves_of(record: Record) -> dict[str, float]:
    """Return the figures of an event by curve, such as `train/loss`, without nested ones."""
    group = GROUPS.get(record["event"])
    return {
        f"{group}/{key}": float(value)
        for key, value in record.items()
        if group and key not in NO_CURVES and isinstance(value, (int, float))
    }


def entropy_buckets(record: Record) -> list[tuple[float, float, int]]:
    """Return (from, to, rows) of the buckets of a discovery's histogram."""
    entropy = record["entropy"]
    low, counts = entropy["low"], entropy["rows"]
    width = (entropy["high"] - low) / len(counts)
    return [(low + at * width, low + (at + 1) * width, count) for at, count in enumerate(counts)]
