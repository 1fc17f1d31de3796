"""Compute statistics of a round's neighbourhoods for people to read.

Labels serve these statistics alone, never the training. N all rows, A anchors, K neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from and_dist.method.neighbour_table import Neighbourhoods
from and_dist.utils.formatting import format_seconds, percent

BINS = 40
"""The number of bins of an entropy histogram."""
HUBS = 10
"""The number of hubs that are listed, and the last bin of the histogram of in-degrees."""
TENTHS = 10
"""The number of parts that the anchors are split into, by entropy."""


def describe_neighbourhoods(
    found: Neighbourhoods, previous_A: Tensor, labels_N: Tensor | None
) -> dict[str, Any]:
    """Return statistics as plain numbers for metrics.jsonl.

    Figures that need labels are None without them, and "kept" is None without previous anchors.
    """
    anchors_A = found.anchors_A.cpu()
    neighbours_AK = found.neighbours_NK.cpu()[anchors_A]
    consistent = None if labels_N is None else count_consistent(found, labels_N)
    return {
        "anchors": len(anchors_A),
        "consistent": consistent,
        "inconsistent": None if consistent is None else neighbours_AK.numel() - consistent,
        "consistency_by_entropy": None if labels_N is None else by_entropy(found, labels_N),
        "kept": _share_kept(anchors_A, previous_A.cpu()),
        "recall": found.recall,
        "entropy": _histogram(found.entropy_N.cpu(), anchors_A),
        "in_degree": _in_degree(found),
    }


def count_consistent(found: Neighbourhoods, labels_N: Tensor) -> int:
    """Return the number of (anchor, neighbour) pairs of one class."""
    return int(_is_consistent(found, labels_N).sum())


def by_entropy(found: Neighbourhoods, labels_N: Tensor) -> list[float]:
    """Return the share of consistent pairs in each tenth of the anchors, lowest entropies first."""
    tenths = _is_consistent(found, labels_N).double().tensor_split(TENTHS)
    return [tenth_AK.mean().item() for tenth_AK in tenths if len(tenth_AK)]


def _is_consistent(found: Neighbourhoods, labels_N: Tensor) -> Tensor:
    """Return [A, K] which pairs are of one class, anchors in ascending order of entropy."""
    anchors_A = found.anchors_A.cpu()
    neighbours_AK = found.neighbours_NK.cpu()[anchors_A]
    return labels_N[neighbours_AK] == labels_N[anchors_A][:, None]


def consistency(found: Neighbourhoods, labels_N: Tensor) -> float | None:
    """Return the share of pairs that are of one class, or None without pairs."""
    num_pairs = len(found.anchors_A) * found.neighbours_NK.shape[1]
    return count_consistent(found, labels_N) / num_pairs if num_pairs else None


def in_one_line(round_index: int, figures: dict[str, Any], seconds: float) -> str:
    """Return a log line with the main statistics of describe_neighbourhoods."""
    parts = [f"{figures['anchors']:,} anchors"]
    if figures["consistent"] is not None:
        parts.append(f"{figures['consistent']:,} pairs consistent")
        parts.append(f"{figures['inconsistent']:,} not")
    if figures["kept"] is not None:
        parts.append(f"{percent(figures['kept'])} % of the last anchors kept")
    if figures["recall"] < 1:
        parts.append(f"recall {percent(figures['recall'])} %")
    return f"discovery of round {round_index}: {', '.join(parts)}, {format_seconds(seconds)}"


def describe_round(record: Mapping[str, Any], vote: str) -> str:
    """Return a log line with the figures of a round, by labels or without any.

    `vote` describes how kNN votes.
    """
    parts = [f"{record['anchors']:,} anchors"]
    if record["consistency"] is not None:
        parts.append(f"consistency {percent(record['consistency'])} %")
    if record["knn"] is None:
        parts.append(f"neighbour entropy {record['neighbour_entropy']:.2f} of 1")
        parts.append(f"spread {record['spread']:.2f} of 1")
    else:
        bank, probe = percent(record["knn_bank"]), percent(record["probe_bank"])
        parts.append(f"kNN {percent(record['knn'])} % (bank {bank} %, probe {probe} %; {vote})")
    parts.append(format_seconds(record["seconds"]))
    return f"round {record['round']} done: {', '.join(parts)}"


def _share_kept(anchors_A: Tensor, previous_A: Tensor) -> float | None:
    """Return the share of the previous anchors that are anchors again, or None without any."""
    if len(previous_A) == 0:
        return None
    return torch.isin(previous_A, anchors_A).double().mean().item()


def _histogram(entropy_N: Tensor, anchors_A: Tensor) -> dict[str, Any]:
    """Return the entropy histograms of all rows and of the anchors, with range and means."""
    low, high = entropy_N.min().item(), entropy_N.max().item()
    counts = [
        torch.histc(values.float(), BINS, low, high).long().tolist()
        for values in (entropy_N, entropy_N[anchors_A])
    ]
    return {
        "low": low,
        "high": high,
        "mean": entropy_N.mean().item(),
        "mean_of_anchors": entropy_N[anchors_A].mean().item() if len(anchors_A) else None,
        "rows": counts[0],
        "anchors": counts[1],
    }


def find_hubs(found: Neighbourhoods) -> list[tuple[int, int]]:
    """Return (row, number of anchors) of the rows that most anchors have as a neighbour."""
    named_N = _times_named(found)
    counts, rows = named_N.topk(min(HUBS, len(named_N)))
    return [pair for pair in zip(rows.tolist(), counts.tolist(), strict=True) if pair[1]]


def _in_degree(found: Neighbourhoods) -> dict[str, Any]:
    """Return how often rows are neighbours; a row that is one of many anchors is a hub."""
    named_N = _times_named(found)
    return {
        "never_named": int((named_N == 0).sum()),
        "hubs": find_hubs(found),
        "rows_by_times_named": named_N.clamp(max=HUBS).bincount().tolist(),
    }


def _times_named(found: Neighbourhoods) -> Tensor:
    """Return [N] how many anchors have each row as a neighbour."""
    neighbours_AK = found.neighbours_NK.cpu()[found.anchors_A.cpu()]
    return neighbours_AK.flatten().bincount(minlength=len(found.entropy_N))
