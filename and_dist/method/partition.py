"""The one primitive: log Z of queries against bank rows, and the softmax mean of those rows.

It is the (log-sum-exp, output) pair of attention with K = V = rows and scale 1 / temperature, so
torch's fused attention operators compute it in tiles; the similarities never exist as a matrix.
On CPUs that multiply bfloat16 but have no AMX two plain products a tile are faster than these.

G queries, S rows, P rows of one query's own, D feature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache, reduce
from typing import NamedTuple

import torch
from torch import Tensor

ROWS_PER_BLOCK = 16384
"""Rows at a time where they are rounded first, where no fused operator serves (float64 on a GPU),
and of 16 bits on a CPU, whose operator copies all rows it is given into the layout of its tiles."""
LEAST_TEMPERATURE = 0.05
"""From here on e^(-2 / temperature), of opposite unit rows, is a number like any other, so that one
shift by the highest logit there can be serves all rows."""


class Partition(NamedTuple):
    """log sum_j exp(x . m_j / tau) and sum_j softmax_j(x . m_j / tau) m_j over some rows j.

    Over no rows: log_z = -inf, mean = 0. Both in float32, or float64 for float64 rows.
    """

    log_z: Tensor
    mean: Tensor


def log_partition(
    queries_GD: Tensor, rows_SD: Tensor, temperature: float, products: torch.dtype | None = None
) -> Partition:
    """Partition of each query over all given rows.

    The rows' type decides the arithmetic, or `products`, to which queries and rows are rounded
    before they are multiplied; sums run in float32 at least.
    """
    products = products or rows_SD.dtype
    queries_GD = queries_GD.detach()
    num_queries, dim = queries_GD.shape
    if num_queries == 0 or rows_SD.shape[0] == 0:
        accumulated = torch.promote_types(rows_SD.dtype, torch.float32)
        empty_G = torch.full((num_queries,), -math.inf, dtype=accumulated, device=rows_SD.device)
        return Partition(empty_G, empty_G.new_zeros(num_queries, dim))
    device = rows_SD.device.type
    if device == "cpu" and products == torch.bfloat16 and _multiplies_faster(temperature):
        return _multiply_on_cpu(queries_GD, rows_SD, temperature)
    queries_GD = queries_GD.to(products)
    form = _form_on(device, products)
    if form.takes_all_rows and products == rows_SD.dtype:
        return form.partition(queries_GD, rows_SD, temperature)
    blocks = (block_TD.to(products) for block_TD in rows_SD.split(ROWS_PER_BLOCK))
    return _merge_one_by_one(form.partition(queries_GD, rows, temperature) for rows in blocks)


def log_partition_of_own(
    queries_GD: Tensor, rows_GPD: Tensor, is_row_GP: Tensor, temperature: float
) -> Partition:
    """Partition of each query over a few rows of its own, those that are marked."""
    queries_GD = queries_GD.detach().to(torch.promote_types(queries_GD.dtype, torch.float32))
    rows_GPD = rows_GPD.to(queries_GD.dtype)
    logits_GP = torch.einsum("gd,gpd->gp", queries_GD, rows_GPD) / temperature
    logits_GP = logits_GP.masked_fill(~is_row_GP, -math.inf)
    log_z_G = logits_GP.logsumexp(dim=1)
    weights_GP = _weights(logits_GP, log_z_G[:, None])
    return Partition(log_z_G, torch.einsum("gp,gpd->gd", weights_GP, rows_GPD))


def merge(partitions: Sequence[Partition]) -> Partition:
    """The partition over the union of disjoint sets of rows, exactly."""
    return merge_stacked(
        Partition(
            torch.stack([part.log_z for part in partitions]),
            torch.stack([part.mean for part in partitions]),
        )
    )


def _merge_one_by_one(partitions: Iterable[Partition]) -> Partition:
    """merge, for parts of which two at a time shall exist."""
    return reduce(lambda merged, part: merge([merged, part]), partitions)


def merge_stacked(parts: Partition) -> Partition:
    """merge, for parts that lie along the first dimension of one tensor."""
    log_z_G = parts.log_z.logsumexp(dim=0)
    weights_WG = _weights(parts.log_z, log_z_G)
    return Partition(log_z_G, torch.einsum("w...,w...d->...d", weights_WG, parts.mean))


def _weights(log_parts: Tensor, log_total: Tensor) -> Tensor:
    """exp(part - total), 0 where the total is over nothing."""
    return (log_parts - log_total).exp().masked_fill(log_parts == -math.inf, 0.0)


class _Form(NamedTuple):
    """A way to compute it, and whether it takes any number of rows in little memory."""

    partition: Callable[[Tensor, Tensor, float], Partition]
    takes_all_rows: bool


def _form_on(device: str, products: torch.dtype) -> _Form:
    if device == "cpu":
        return _Form(_fused_on_cpu, takes_all_rows=products.itemsize > 2)
    is_fused = products != torch.float64
    return _Form(_fused_on_gpu if is_fused else _dense, takes_all_rows=is_fused)


def is_faster_in_bfloat16(temperature: float) -> bool:
    """Whether this CPU multiplies many rows faster so than in float32."""
    return _cpu_has("amx_bf16") or _multiplies_faster(temperature)


def _multiplies_faster(temperature: float) -> bool:
    """Whether two products a tile are the faster form of bfloat16 on this CPU."""
    is_able = _cpu_has("avx512_bf16") and not _cpu_has("amx_bf16")
    return is_able and temperature >= LEAST_TEMPERATURE


@cache
def _cpu_has(feature: str) -> bool:
    return bool(torch.cpu.get_capabilities().get(feature, False))


def _multiply_on_cpu(queries_GD: Tensor, rows_SD: Tensor, temperature: float) -> Partition:
    """In bfloat16, logits too: less the highest there can be, by one more column of queries and
    rows, before they are rounded, so that those that count are rounded least."""
    num_queries, dim = queries_GD.shape
    num_rows = min(len(rows_SD), ROWS_PER_BLOCK, max(1024, 2**21 // num_queries))
    wide_GE, block_TE, p_GT = (
        torch.ones(shape, dtype=torch.bfloat16)
        for shape in ((num_queries, dim + 1), (num_rows, dim + 1), (num_queries, num_rows))
    )
    wide_GE[:, :dim] = queries_GD.float() / temperature
    wide_GE[:, dim] = -1 / temperature
    total_G = torch.zeros(num_queries)
    sum_GD = torch.zeros(num_queries, dim)
    for block_SD in rows_SD.split(num_rows):
        rows_TE, p = block_TE[: len(block_SD)], p_GT[:, : len(block_SD)]
        rows_TE[:, :dim] = block_SD
        torch.mm(wide_GE, rows_TE.T, out=p).exp_()
        total_G += p.sum(dim=1, dtype=torch.float32)
        sum_GD += p @ rows_TE[:, :dim]
    return Partition(total_G.log() - wide_GE[:, dim].float(), sum_GD / total_G[:, None])


def _dense(queries_GD: Tensor, rows_TD: Tensor, temperature: float) -> Partition:
    logits_GT = queries_GD @ rows_TD.T / temperature
    log_z_G = logits_GT.logsumexp(dim=1)
    return Partition(log_z_G, (logits_GT - log_z_G[:, None]).exp() @ rows_TD)


def _fused_on_cpu(queries_GD: Tensor, rows_SD: Tensor, temperature: float) -> Partition:
    rows_11SD = rows_SD[None, None]
    mean_11GD, log_z_11G = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries_GD[None, None], rows_11SD, rows_11SD, 0.0, False, scale=1.0 / temperature
    )
    return Partition(log_z_11G[0, 0], mean_11GD[0, 0].to(log_z_11G.dtype))


def _fused_on_gpu(queries_GD: Tensor, rows_SD: Tensor, temperature: float) -> Partition:
    """The shard is cut along the head axis, so that few queries still fill the device."""
    num_rows, dim = rows_SD.shape
    num_heads = _num_heads(queries_GD.shape[0], num_rows, queries_GD.device)
    per_head = num_rows // num_heads
    body_HSD = rows_SD[: per_head * num_heads].view(num_heads, per_head, dim)
    parts = [_attend_on_gpu(queries_GD, body_HSD, temperature)]
    if per_head * num_heads < num_rows:
        parts.append(_attend_on_gpu(queries_GD, rows_SD[None, per_head * num_heads :], temperature))
    return merge([merge_stacked(part) for part in parts])


def _attend_on_gpu(queries_GD: Tensor, rows_HSD: Tensor, temperature: float) -> Partition:
    queries_1HGD = queries_GD.expand(1, rows_HSD.shape[0], -1, -1)
    rows_1HSD = rows_HSD[None]
    scale = 1.0 / temperature
    if rows_HSD.dtype == torch.float32:
        mean, log_z, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            queries_1HGD, rows_1HSD, rows_1HSD, None, True, 0.0, False, scale=scale
        )
    else:
        mean, log_z, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
            queries_1HGD, rows_1HSD, rows_1HSD, 0.0, False, False, scale=scale
        )
    # Both operators may pad the query axis of log_z to a multiple of their tile.
    return Partition(log_z[0, :, : queries_GD.shape[0]].float(), mean[0].float())


def _num_heads(num_queries: int, num_rows: int, device: torch.device) -> int:
    """Enough for two blocks of 128 queries on every multiprocessor, at 4,096 rows or more each."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    blocks_of_queries = math.ceil(num_queries / 128)
    return max(1, min(math.ceil(2 * processors / blocks_of_queries), num_rows // 4096))
