"""Compute partitions: a kernel for each device and type, all of one signature.

The partition is the (log-sum-exp, output) pair of attention with K = V = rows and scale
1 / temperature, so torch's fused attention operators compute it in tiles, and the similarities
never exist as a matrix. A kernel takes any number of rows above zero and cuts them by itself.

G queries, S rows, T rows of a tile, D feature, E = D + 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from and_dist.method import partition_gpu
from and_dist.method.partition_gpu import ATTENTION
from and_dist.method.partition_merge import Partition, merge_one_by_one

ROWS_PER_BLOCK = 16384
"""Rows of a block where they are rounded first, where no fused operator serves (float64 on a GPU),
and of 16 bits on a CPU, whose operator copies all rows it is given into the layout of its tiles."""
LEAST_TEMPERATURE = 0.05
"""The lowest temperature at which e^(-2 / temperature), of opposite unit rows, is a normal float32,
so that one shift by the highest logit there can be serves all rows."""
Kernel = Callable[[Tensor, Tensor, float], Partition]
"""(queries_GD, rows_SD, temperature) -> their partition."""


def select_kernel(
    device: torch.device, products: torch.dtype, temperature: float, form: str = ATTENTION
) -> Kernel:
    """Return the kernel for a device that multiplies queries and rows rounded to `products`.

    On a GPU there are several forms for 16 bits (partition_gpu.py).
    """
    if device.type == "cpu":
        if products == torch.bfloat16 and _multiplies_faster(temperature):
            return _multiply_on_cpu
        return _rounding(_attend_on_cpu, products, takes_all_rows=products.itemsize > 2)
    if products == torch.float64:  # the fused operators of CUDA have no float64
        return _rounding(_dense, products, takes_all_rows=False)
    return _rounding(partial(partition_gpu.compute, form=form), products, takes_all_rows=True)


def is_faster_in_bfloat16(temperature: float) -> bool:
    """Return whether this CPU multiplies many rows faster in bfloat16 than in float32."""
    return _cpu_has("amx_bf16") or _multiplies_faster(temperature)


def _rounding(attend: Kernel, products: torch.dtype, takes_all_rows: bool) -> Kernel:
    """Return a kernel that rounds queries and rows, block by block, before it attends."""

    def kernel(queries_GD: Tensor, rows_SD: Tensor, temperature: float) -> Partition:
        queries_GD = queries_GD.to(products)
        if takes_all_rows and products == rows_SD.dtype:
            return attend(queries_GD, rows_SD, temperature)
        blocks = (block_TD.to(products) for block_TD in rows_SD.split(ROWS_PER_BLOCK))
        return merge_one_by_one(attend(queries_GD, block_TD, temperature) for block_TD in blocks)

    return kernel


def _multiplies_faster(temperature: float) -> bool:
    """Return whether two plain products a tile are this CPU's fastest form of bfloat16."""
    is_able = _cpu_has("avx512_bf16") and not _cpu_has("amx_bf16")
    return is_able and temperature >= LEAST_TEMPERATURE


@cache
def _cpu_has(feature: str) -> bool:
    """Return whether this CPU has an instruction set, by torch's name for it."""
    # Before torch 2.11 nobody could be asked, and rows are multiplied as they are stored.
    find: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return bool(find().get(feature, False))


def _multiply_on_cpu(queries_GD: Tensor, rows_SD: Tensor, temperature: float) -> Partition:
    """Compute the partition by two bfloat16 products a tile, whose logits are rounded too."""
    num_queries, dim = queries_GD.shape
    # A tile's logits (2 bytes each) stay within about 4 MB, a CPU core's share of its cache.
    num_rows = min(len(rows_SD), ROWS_PER_BLOCK, max(1024, 2**21 // num_queries))
    wide_GE, block_TE, p_GT = (
        torch.ones(shape, dtype=torch.bfloat16)
        for shape in ((num_queries, dim + 1), (num_rows, dim + 1), (num_queries, num_rows))
    )
    wide_GE[:, :dim] = queries_GD.float() / temperature
    # One more column of queries times the ones in the rows' last column subtracts 1 / tau, the
    # highest logit of unit rows, within the product: bfloat16 rounds numbers near 0 least, so the
    # largest logits, which weigh most, are rounded least.
    bias_column = -1 / temperature
    wide_GE[:, dim] = bias_column
    total_G = torch.zeros(num_queries)
    sum_GD = torch.zeros(num_queries, dim)
    for block_SD in rows_SD.split(num_rows):
        rows_TE, p = block_TE[: len(block_SD)], p_GT[:, : len(block_SD)]
        rows_TE[:, :dim] = block_SD
        torch.mm(wide_GE, rows_TE.T, out=p).exp_()
        total_G += p.sum(dim=1, dtype=torch.float32)
        sum_GD += p @ rows_TE[:, :dim]
    # The bias as bfloat16 holds it is what was subtracted, so exactly that is added again.
    return Partition(total_G.log() - wide_GE[:, dim].float(), sum_GD / total_G[:, None])


def _dense(queries_GD: Tensor, rows_TD: Tensor, temperature: float) -> Partition:
    """Compute the partition from the whole matrix of logits."""
    logits_GT = queries_GD @ rows_TD.T / temperature
    log_z_G = logits_GT.logsumexp(dim=1)
    return Partition(log_z_G, (logits_GT - log_z_G[:, None]).exp() @ rows_TD)


def _attend_on_cpu(queries_GD: Tensor, rows_SD: Tensor, temperature: float) -> Partition:
    """Compute the partition by the CPU's flash attention, which also returns log-sum-exps."""
    rows_11SD = rows_SD[None, None]
    mean_11GD, log_z_11G = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries_GD[None, None], rows_11SD, rows_11SD, 0.0, False, scale=1.0 / temperature
    )
    return Partition(log_z_11G[0, 0], mean_11GD[0, 0].to(log_z_11G.dtype))
