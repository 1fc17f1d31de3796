"""Compute partitions on a GPU, in the form that is fastest there for a type of rows.

attention   torch's fused attention: flash for 16 bits, memory-efficient for float32
cudnn       cuDNN's attention, for 16 bits
flash4      FlashAttention 4, for 16 bits, where the package flash-attn-4 is installed
triton      one kernel of our own that reads a row once for both products, for 16 bits

The partition is attention with K = V = rows. Attention runs one block of threads per head and block
of queries, so rows are cut along the head axis, or a few queries would leave most of a GPU idle.

G queries, S rows (of a head, where there are heads), T rows that fill no head, H heads, X parts,
D feature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from importlib import metadata
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional

from and_dist.method.partition_merge import Partition, merge_one_by_one

ATTENTION, CUDNN, FLASH4, TRITON = "attention", "cudnn", "flash4", "triton"
FLASH4_PACKAGE = "flash-attn-4"
WIDTH_OF_LOADS = 8
"""The number of features that CUDA's attention operators load at a time; they take multiples."""
ROWS_PADDED_AT_ONCE = 2**18
MOST_FLASH_FEATURES = 256
"""The most features of flash attention; efficient attention takes any number."""
MOST_CUDNN_FEATURES = MOST_FLASH4_FEATURES = 128
TRITON_FEATURES = (32, 64, 128)
"""The numbers of features that the Triton kernel takes; a tile of more would spill registers."""
Attend = Callable[[Tensor, Tensor, float], Partition]
"""(queries_GD, rows_HSD, temperature) -> the partition of each head, [H, G] and [H, G, D]."""


@cache
def forms_for(products: torch.dtype, dim: int) -> tuple[str, ...]:
    """Return the forms that multiply rows of a type and length; every step asks."""
    if products.itemsize != 2:
        return (ATTENTION,)
    padded = dim + -dim % WIDTH_OF_LOADS
    forms = [ATTENTION]
    if padded <= MOST_CUDNN_FEATURES:
        forms.append(CUDNN)
    if padded <= MOST_FLASH4_FEATURES and _is_installed(FLASH4_PACKAGE):
        forms.append(FLASH4)
    if dim in TRITON_FEATURES and find_spec("triton") is not None:
        forms.append(TRITON)
    return tuple(forms)


def _is_installed(package: str) -> bool:
    """Return whether a package is installed, without loading it."""
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def check_form(form: str, products: torch.dtype, dim: int) -> None:
    """Raise ValueError for a form that does not multiply rows of a type and length."""
    known = forms_for(products, dim)
    if form not in known:
        kind = str(products).removeprefix("torch.")
        raise ValueError(
            f"bank.form={form} takes no rows of {dim} features in {kind}; take {' or '.join(known)}"
        )


def compute(queries_GD: Tensor, rows_SD: Tensor, temperature: float, form: str) -> Partition:
    """Return the partition in a form; raise ValueError for one that does not take these rows."""
    check_form(form, rows_SD.dtype, rows_SD.shape[1])
    if form == TRITON:
        # Triton takes half a second to load, and a machine without a GPU may lack it.
        from and_dist.method.partition_triton import partition_by_triton

        return Partition(*partition_by_triton(queries_GD, rows_SD, temperature))
    attend = {CUDNN: _attend_by_cudnn, FLASH4: _attend_by_flash4}.get(form, _attend)
    return _attend_padded(queries_GD, rows_SD, temperature, attend)


def _attend_padded(
    queries_GD: Tensor, rows_SD: Tensor, temperature: float, attend: Attend
) -> Partition:
    """Compute the partition with as many features of 0 added as the operators want."""
    dim = rows_SD.shape[1]
    missing = -dim % WIDTH_OF_LOADS
    if missing == 0:
        return _attend_by_heads(queries_GD, rows_SD, temperature, attend)
    queries_GD = functional.pad(queries_GD, (0, missing))
    blocks = (functional.pad(rows, (0, missing)) for rows in rows_SD.split(ROWS_PADDED_AT_ONCE))
    log_z_G, mean_GD = merge_one_by_one(
        _attend_by_heads(queries_GD, rows, temperature, attend) for rows in blocks
    )
    return Partition(log_z_G, mean_GD[:, :dim])


def _attend_by_heads(
    queries_GD: Tensor, rows_SD: Tensor, temperature: float, attend: Attend
) -> Partition:
    """Compute the partition with the rows cut along the head axis.

    Rows that do not fill the heads, fewer than there are heads, are parts of one row each: a logit
    is the log Z of its row, which is its mean.
    """
    num_rows, dim = rows_SD.shape
    num_heads = _num_heads(queries_GD.shape[0], num_rows, queries_GD.device)
    per_head = num_rows // num_heads
    body_HSD = rows_SD[: per_head * num_heads].view(num_heads, per_head, dim)
    log_z_HG, mean_HGD = attend(queries_GD, body_HSD, temperature)
    rest_TD = rows_SD[per_head * num_heads :].float()
    logits_GT = queries_GD.float() @ rest_TD.T / temperature
    log_parts_GX = torch.cat([log_z_HG.T, logits_GT], dim=1)
    log_z_G = log_parts_GX.logsumexp(dim=1)
    weights_GH, weights_GT = (log_parts_GX - log_z_G[:, None]).exp().tensor_split([num_heads], 1)
    return Partition(
        log_z_G,
        torch.einsum("gh,hgd->gd", weights_GH, mean_HGD) + weights_GT @ rest_TD,
    )


def _attend(queries_GD: Tensor, rows_HSD: Tensor, temperature: float) -> Partition:
    """Compute each head's partition by the fused operator for the rows' type; [H, ...] parts."""
    queries_1HGD = queries_GD.expand(1, rows_HSD.shape[0], -1, -1)
    rows_1HSD = rows_HSD[None]
    scale = 1.0 / temperature
    # Flash attention takes 16 bits only.
    if rows_HSD.dtype == torch.float32 or rows_HSD.shape[-1] > MOST_FLASH_FEATURES:
        mean, log_z, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            queries_1HGD, rows_1HSD, rows_1HSD, None, True, 0.0, False, scale=scale
        )
    else:
        mean, log_z, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
            queries_1HGD, rows_1HSD, rows_1HSD, 0.0, False, False, scale=scale
        )
    # Both operators may pad the query axis of log_z to a multiple of their tile.
    return Partition(log_z[0, :, : queries_GD.shape[0]].float(), mean[0].float())


def _attend_by_cudnn(queries_GD: Tensor, rows_HSD: Tensor, temperature: float) -> Partition:
    """Compute each head's partition by cuDNN; [H, ...] parts."""
    # Expanded queries have a stride of 0 along the heads, on which cuDNN does not rely.
    queries_1HGD = queries_GD.expand(1, rows_HSD.shape[0], -1, -1).contiguous()
    rows_1HSD = rows_HSD[None]
    mean, log_z, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        queries_1HGD, rows_1HSD, rows_1HSD, None, True, 0.0, False, False, scale=1.0 / temperature
    )
    # Its log_z is [1, H, G, 1], torch's others are [1, H, G].
    log_z_HG = log_z.view(rows_HSD.shape[0], -1)[:, : queries_GD.shape[0]]
    return Partition(log_z_HG.float(), mean[0].float())


def _attend_by_flash4(queries_GD: Tensor, rows_HSD: Tensor, temperature: float) -> Partition:
    """Compute each head's partition by FlashAttention 4, which has its heads behind; [H, ...]."""
    # It compiles its kernels, and takes seconds to load.
    from flash_attn.cute import flash_attn_func

    queries_1GHD = queries_GD[None, :, None].expand(1, -1, rows_HSD.shape[0], -1).contiguous()
    rows_1SHD = rows_HSD[None].transpose(1, 2)
    mean_1GHD, log_z_1HG = flash_attn_func(
        queries_1GHD, rows_1SHD, rows_1SHD, softmax_scale=1.0 / temperature, return_lse=True
    )
    return Partition(log_z_1HG[0].float(), mean_1GHD[0].transpose(0, 1).float())


def _num_heads(num_queries: int, num_rows: int, device: torch.device) -> int:
    """Return as many heads as give every multiprocessor two blocks of 128 queries, and no more.

    One block more would be a second wave, in which the other multiprocessors idle: on an H100 4,096
    queries over ImageNet's rows take 7.3 ms in 8 heads and 10.0 ms in 9. A head has 4,096 rows.
    """
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    blocks_of_queries = math.ceil(num_queries / 128)
    return max(1, min(2 * processors // blocks_of_queries, num_rows // 4096))
