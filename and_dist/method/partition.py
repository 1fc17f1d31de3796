"""Compute log Z of queries against bank rows and the softmax mean of those rows: the one primitive.

G queries, S rows, P rows of one query's own, D feature.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from and_dist.method.partition_gpu import ATTENTION
from and_dist.method.partition_kernels import select_kernel
from and_dist.method.partition_merge import Partition, weights


def log_partition(
    queries_GD: Tensor,
    rows_SD: Tensor,
    temperature: float,
    products: torch.dtype | None = None,
    form: str = ATTENTION,
) -> Partition:
    """Return the partition of each query over all given rows: log Z [G] and the mean row [G, D].

    log Z = log sum_j exp(x . m_j / tau), and the mean is that of the rows under this softmax. The
    rows' type decides the arithmetic, or `products`, to which queries and rows are rounded
    before they are multiplied; sums run in float32 at least. `form` is one of those of a GPU
    (partition_gpu.py). There is no gradient: that of log Z in x is the mean over tau.

    Args:
        queries_GD: Queries [G, D].
        rows_SD: Rows [S, D]; S may be 0, whose log Z is -inf.
        temperature: tau.
        products: Type that both are rounded to before they are multiplied.
        form: Form of a GPU.

    Example:
        >>> queries_GD, rows_SD = torch.randn(4, 8), torch.randn(100, 8)
        >>> log_z_G, mean_GD = and_dist.log_partition(queries_GD, rows_SD, temperature=1.0)
        >>> log_z_G.allclose((queries_GD @ rows_SD.T).logsumexp(dim=1), atol=1e-5)
        True
    """
    num_queries, dim = queries_GD.shape
    if num_queries == 0 or rows_SD.shape[0] == 0:
        accumulated = torch.promote_types(rows_SD.dtype, torch.float32)
        empty_G = torch.full((num_queries,), -math.inf, dtype=accumulated, device=rows_SD.device)
        return Partition(empty_G, empty_G.new_zeros(num_queries, dim))
    kernel = select_kernel(rows_SD.device, products or rows_SD.dtype, temperature, form)
    return kernel(queries_GD.detach(), rows_SD, temperature)


def log_partition_of_own(
    queries_GD: Tensor, rows_GPD: Tensor, is_row_GP: Tensor, temperature: float
) -> Partition:
    """Return the partition of each query over a few rows of its own, those that are marked."""
    queries_GD = queries_GD.detach().to(torch.promote_types(queries_GD.dtype, torch.float32))
    rows_GPD = rows_GPD.to(queries_GD.dtype)
    logits_GP = torch.einsum("gd,gpd->gp", queries_GD, rows_GPD) / temperature
    logits_GP = logits_GP.masked_fill(~is_row_GP, -math.inf)
    log_z_G = logits_GP.logsumexp(dim=1)
    weights_GP = weights(logits_GP, log_z_G[:, None])
    return Partition(log_z_G, torch.einsum("gp,gpd->gd", weights_GP, rows_GPD))
