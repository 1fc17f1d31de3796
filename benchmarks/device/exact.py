"""Compute the expected results of the kernels in float64, dense and with none of their code.

G queries, S rows, N all rows, D feature, W blocks of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from and_dist.method.partition_merge import Partition

ROWS_PER_BLOCK = 2**16
"""The number of rows whose logits with 4,096 queries take 2 GB in float64."""


def unit_rows(count: int, dim: int, dtype: torch.dtype, random: torch.Generator) -> Tensor:
    """Return [count, dim] rows of norm 1, drawn in float64 on the generator's device."""
    values_SD = torch.randn(count, dim, generator=random, device=random.device, dtype=torch.float64)
    return functional.normalize(values_SD, dim=1).to(dtype)


def exact_partition(queries_GD: Tensor, rows_SD: Tensor, temperature: float) -> Partition:
    """Return log Z and the softmax mean over all rows, which are taken block by block."""
    queries_GD = queries_GD.double()
    log_z, means = [], []
    for block_SD in rows_SD.split(ROWS_PER_BLOCK):
        block_SD = block_SD.double()
        logits_GS = queries_GD @ block_SD.T / temperature
        log_z.append(logits_GS.logsumexp(dim=1))
        means.append(logits_GS.softmax(dim=1) @ block_SD)
    log_z_WG = torch.stack(log_z)
    weights_WG = log_z_WG.softmax(dim=0)
    mean_GD = torch.einsum("wg,wgd->gd", weights_WG, torch.stack(means))
    return Partition(log_z_WG.logsumexp(dim=0), mean_GD)


def partition_errors(found: Partition, exact: Partition) -> tuple[float, float]:
    """Return how far log Z and the mean are from the exact ones, at most."""
    log_z_error = (found.log_z.double() - exact.log_z).abs().max().item()
    return log_z_error, (found.mean.double() - exact.mean).abs().max().item()


def exact_entropy(bank_ND: Tensor, temperature: float) -> Tensor:
    """Return the entropy of each row over the whole bank, its own row included (Eq. 5)."""
    logits_NN = bank_ND.double() @ bank_ND.double().T / temperature
    return -(logits_NN.softmax(dim=1) * logits_NN.log_softmax(dim=1)).sum(dim=1)


def exact_nearest(bank_ND: Tensor) -> Tensor:
    """Return for each of [N, D] unit rows the nearest other row (Eq. 1), [N]."""
    similarity_NN = bank_ND.double() @ bank_ND.double().T
    return similarity_NN.fill_diagonal_(-2.0).argmax(dim=1)
