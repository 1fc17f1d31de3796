"""Merge partitions over disjoint sets of rows into the partition over their union, exactly.

G queries, W parts, D feature.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor


class Partition(NamedTuple):
    """log sum_j exp(x . m_j / tau) and sum_j softmax_j(x . m_j / tau) m_j over some rows j.

    Over no rows: log_z = -inf, mean = 0. Both in float32, or float64 for float64 rows.
    """

    log_z: Tensor
    mean: Tensor


def merge(partitions: Sequence[Partition]) -> Partition:
    """Return the partition over the union of disjoint sets of rows, exactly.

    Args:
        partitions: One partition for each set of rows, of the same queries.

    Example:
        >>> queries_GD, rows_SD = torch.randn(4, 8), torch.randn(100, 8)
        >>> halves = [and_dist.log_partition(queries_GD, half, 1.0) for half in rows_SD.split(50)]
        >>> whole = and_dist.log_partition(queries_GD, rows_SD, 1.0)
        >>> and_dist.merge(halves).mean.allclose(whole.mean, atol=1e-5)
        True
    """
    return merge_stacked(
        Partition(
            torch.stack([part.log_z for part in partitions]),
            torch.stack([part.mean for part in partitions]),
        )
    )


def merge_stacked(parts: Partition) -> Partition:
    """Merge parts that lie along the first dimension of one tensor."""
    log_z_G = parts.log_z.logsumexp(dim=0)
    weights_WG = weights(parts.log_z, log_z_G)
    return Partition(log_z_G, torch.einsum("w...,w...d->...d", weights_WG, parts.mean))


def merge_one_by_one(partitions: Iterable[Partition]) -> Partition:
    """Merge parts as they come, so that at most two of them are in memory."""
    return reduce(lambda merged, part: merge([merged, part]), partitions)


def weights(log_parts: Tensor, log_total: Tensor) -> Tensor:
    """Return exp(part - total), and 0 where a part is over nothing."""
    # Over nothing both are -inf, and their difference is NaN: the mask replaces it.
    return (log_parts - log_total).exp().masked_fill(log_parts == -math.inf, 0.0)
