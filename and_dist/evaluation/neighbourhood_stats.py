"""What a round's neighbourhoods look like, for people; labels go no further than this.

N all rows, S anchors, K neighbours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from and_dist.method.neighbour_table import Neighbourhoods
from and_dist.utils.formatting import format_seconds, percent

BINS = 40
HUBS = 10
TENTHS = 10


def describe_neighbourhoods(
    found: Neighbourhoods, previous_anchors_S: Tensor, labels_N: Tensor | None
) -> dict[str, Any]:
    """Plain numbers, for metrics.jsonl; None where there is nothing to say."""
    anchors_A = found.anchors_A.cpu()
    neighbours_SK = found.neighbours_NK.cpu()[anchors_A]
    consistent = None if labels_N is None else count_consistent(found, labels_N)
    return {
        "anchors": len(anchors_A),
        "consistent": consistent,
        "inconsistent": None if consistent is None else neighbours_SK.numel() - consistent,
        "consistency_by_entropy": None if labels_N is None else by_entropy(found, labels_N),
        "kept": _share_kept(anchors_A, previous_anchors_S.cpu()),
        "recall": found.recall,
        "entropy": _histogram(found.entropy_N.cpu(), anchors_A),
        "in_degree": _in_degree(found),
    }


def count_consistent(found: Neighbourhoods, labels_N: Tensor) -> int:
    """Pairs of an anchor and a neighbour of one class."""
    return int(_is_consistent(found, labels_N).sum())


def by_entropy(found: Neighbourhoods, labels_N: Tensor) -> list[float]:
    """The share of consistent pairs of each tenth of the anchors, the lowest entropies first."""
    tenths = _is_consistent(found, labels_N).double().tensor_split(TENTHS)
    return [tenth_SK.mean().item() for tenth_SK in tenths if len(tenth_SK)]


def _is_consistent(found: Neighbourhoods, labels_N: Tensor) -> Tensor:
    """[S, K], anchors in the order of their entropies."""
    anchors_A = found.anchors_A.cpu()
    neighbours_SK = found.neighbours_NK.cpu()[anchors_A]
    return labels_N[neighbours_SK] == labels_N[anchors_A][:, None]


def consistency(found: Neighbourhoods, labels_N: Tensor) -> float | None:
    """Their share of all pairs."""
    num_pairs = len(found.anchors_A) * found.neighbours_NK.shape[1]
    return count_consistent(found, labels_N) / num_pairs if num_pairs else None


def in_one_line(round_index: int, figures: dict[str, Any], seconds: float) -> str:
    """What describe_neighbourhoods found, for the one who waits."""
    parts = [f"{figures['anchors']:,} anchors"]
    if figures["consistent"] is not None:
        parts.append(f"{figures['consistent']:,} pairs consistent")
        parts.append(f"{figures['inconsistent']:,} not")
    if figures["kept"] is not None:
        parts.append(f"{percent(figures['kept'])} % of the last anchors kept")
    if figures["recall"] < 1:
        parts.append(f"recall {percent(figures['recall'])} %")
    return f"discovery of round {round_index}: {', '.join(parts)}, {format_seconds(seconds)}"


def _share_kept(anchors_A: Tensor, previous_A: Tensor) -> float | None:
    """Share of the last round's anchors that are anchors again."""
    if len(previous_A) == 0:
        return None
    return torch.isin(previous_A, anchors_A).double().mean().item()


def _histogram(entropy_N: Tensor, anchors_A: Tensor) -> dict[str, Any]:
    """Counts of all rows and of the anchors in bins between the lowest and highest entropy."""
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
    """Rows that are neighbours of most anchors, and of how many."""
    named_N = _times_named(found)
    counts, rows = named_N.topk(min(HUBS, len(named_N)))
    return [pair for pair in zip(rows.tolist(), counts.tolist(), strict=True) if pair[1]]


def _in_degree(found: Neighbourhoods) -> dict[str, Any]:
    """How often rows are named as neighbours: few named by many are hubs."""
    named_N = _times_named(found)
    return {
        "never_named": int((named_N == 0).sum()),
        "hubs": find_hubs(found),
        "rows_by_times_named": named_N.clamp(max=HUBS).bincount().tolist(),
    }


def _times_named(found: Neighbourhoods) -> Tensor:
    neighbours_SK = found.neighbours_NK.cpu()[found.anchors_A.cpu()]
    return neighbours_SK.flatten().bincount(minlength=len(found.entropy_N))
