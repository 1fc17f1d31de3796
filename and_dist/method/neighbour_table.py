"""Hold the table of neighbours that a round trains with. N all rows, K neighbours, A anchors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Neighbourhoods:
    """Holds the table a round trains with, equal on all ranks."""

    neighbours_NK: Tensor
    """Row ids of an anchor's K nearest rows, nearest first; all -1 for an instance."""
    entropy_N: Tensor
    """Entropy of every row (Eq. 5); NaN before the first discovery."""
    anchors_A: Tensor
    """Anchors in ascending order of entropy."""
    recall: float | None = None
    """Share of the exact neighbours that this round's search found, on a sample of the anchors."""


def all_instances(num_rows: int, num_neighbours: int, device: torch.device) -> Neighbourhoods:
    """Return the table of round 0: every row is an instance, without neighbours."""
    return Neighbourhoods(
        torch.full((num_rows, num_neighbours), -1, device=device),
        torch.full((num_rows,), torch.nan, dtype=torch.float64, device=device),
        torch.empty(0, dtype=torch.int64, device=device),
    )


def check_neighbours(neighbours_AK: Tensor, anchors_A: Tensor, num_rows: int) -> None:
    """Raise RuntimeError unless every anchor has K distinct neighbours in range, not itself."""
    problems = {
        "a neighbour out of range": (neighbours_AK < 0) | (neighbours_AK >= num_rows),
        "itself as a neighbour": neighbours_AK == anchors_A[:, None],
    }
    ordered_AK = neighbours_AK.sort(dim=1).values
    problems["a neighbour twice"] = ordered_AK[:, 1:] == ordered_AK[:, :-1]
    for problem, is_bad in problems.items():
        bad_A = is_bad.any(dim=1)
        if bad_A.any():
            example = anchors_A[bad_A][0].item()
            raise RuntimeError(f"{int(bad_A.sum())} anchors have {problem}, row {example} first")
