"""Compute the loss of a global batch over the sharded bank, and its gradient (Eq. 2, 3, 7, 9, 10).

Each rank knows its rows of the bank; each query needs all of them. So queries travel to the
shards, partial partitions travel back, and what autograd would have to send is already here:
d loss / d x = (mean_all - mean_pos) / tau.

B local batch, G global batch, D feature, K neighbours, P = K + 1 positives (the row itself first).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from and_dist.distributed.collectives import exchange_parts, gather_batch, reduce_sum
from and_dist.distributed.world import World
from and_dist.method.memory_bank import MemoryBank
from and_dist.method.partition import log_partition, log_partition_of_own
from and_dist.method.partition_merge import Partition, merge_stacked
from and_dist.utils.step_phases import step_phase


class GlobalBatch(NamedTuple):
    """Holds what every rank knows about all ranks' queries; rows of -1 are padding."""

    features_GD: Tensor
    rows_G: Tensor
    neighbours_GK: Tensor
    requests_G: Tensor
    """The request of each query's rank, such as to stop; see distributed/watchdog.py."""


def gather_global_batch(
    features_BD: Tensor, rows_B: Tensor, neighbours_BK: Tensor, world: World, request: int = 0
) -> GlobalBatch:
    """Gather the queries of all ranks by one collective; B is the same on every rank."""
    requests_B = torch.full_like(rows_B, request, dtype=torch.uint8)
    return GlobalBatch(*gather_batch(world, [features_BD, rows_B, neighbours_BK, requests_B]))


def neighbourhood_nll(
    features_BD: Tensor,
    rows_B: Tensor,
    neighbours_BK: Tensor,
    bank: MemoryBank,
    world: World,
    temperature: float,
) -> Tensor:
    """Return the mean loss over the real queries of the global batch; see sharded_nll.

    Every rank calls it with as many queries. The gradient in the features is scaled so that after
    DDP has averaged, it is that of one process with the whole batch.

    Args:
        features_BD: Features of this rank's images, [B, D], of unit norm, with a gradient.
        rows_B: Row of each image in the bank, int64; -1 is padding, which weighs nothing.
        neighbours_BK: Rows of the K neighbours of each image, -1 for none; all -1 for an instance.
        bank: This rank's shard.
        world: The ranks, from open_world().
        temperature: tau.

    Example:
        >>> rows_SD = torch.nn.functional.normalize(torch.randn(100, 8), dim=1)
        >>> bank = and_dist.MemoryBank(rows_SD, start=0, num_rows=100, update_rate=0.5)
        >>> features_BD = rows_SD[:4].clone().requires_grad_()
        >>> instances_BK = torch.full((4, 1), -1)
        >>> with and_dist.open_world("cpu") as world:
        ...     given = features_BD, torch.arange(4), instances_BK, bank, world
        ...     and_dist.neighbourhood_nll(*given, temperature=0.1).backward()
        >>> features_BD.grad.shape
        torch.Size([4, 8])
    """
    batch = gather_global_batch(features_BD, rows_B, neighbours_BK, world)
    return sharded_nll(features_BD, batch, bank, world, temperature)


def sharded_nll(
    features_BD: Tensor, batch: GlobalBatch, bank: MemoryBank, world: World, temperature: float
) -> Tensor:
    """Return log Z_all - log Z_pos, averaged over the global batch; the same number on every rank.

    Its gradient in features_BD is scaled by ddp_scale, so that after DDP all gradients are those of
    one process with the whole batch.
    """
    over_all, over_positives = _partitions_of_my_queries(batch, bank, world, temperature)
    with step_phase("loss"):
        loss_B = over_all.log_z - over_positives.log_z
        slope_BD = over_all.mean - over_positives.mean
        return mean_over_batch(features_BD, loss_B, slope_BD, batch, world, temperature)


def ddp_scale(world: World) -> int:
    """Return the factor of every gradient that DDP averages over ranks and should sum."""
    return world.size


def mean_over_batch(
    features_BD: Tensor,
    loss_B: Tensor,
    slope_BD: Tensor,
    batch: GlobalBatch,
    world: World,
    temperature: float,
) -> Tensor:
    """Return the mean of all ranks' losses over the real queries.

    Its gradient is known: d loss / d x = slope / tau.
    """
    mine = slice(len(features_BD) * world.rank, len(features_BD) * (world.rank + 1))
    is_real_B = batch.rows_G[mine] >= 0
    num_real = (batch.rows_G >= 0).sum().clamp(min=1).to(loss_B.dtype)
    loss = reduce_sum(world, loss_B.where(is_real_B, 0).sum()) / num_real
    scale = ddp_scale(world) / temperature / num_real
    gradient_BD = slope_BD.where(is_real_B[:, None], 0) * scale
    gradient_BD = gradient_BD.to(features_BD.dtype)
    mean: Tensor = PrecomputedGradient.apply(features_BD, loss, gradient_BD)
    return mean


def gather_features_with_grad(features_BD: Tensor, batch: GlobalBatch, world: World) -> Tensor:
    """Return the features [G, D] of all ranks; gradients go through to this rank's.

    A loss that every rank computes of all features alike gives every rank the whole gradient of its
    other parameters, with no traffic. The gradient of the features is scaled by ddp_scale.
    """
    mine_BD = features_BD.clone()
    mine_BD.register_hook(lambda gradient_BD: gradient_BD * ddp_scale(world))
    before = len(features_BD) * world.rank
    after = before + len(features_BD)
    return torch.cat([batch.features_GD[:before], mine_BD, batch.features_GD[after:]])


class PrecomputedGradient(torch.autograd.Function):
    """Passes on a loss and its gradient, both computed without autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        features_BD: Tensor,  # noqa: ARG004 - what the gradient is of; autograd needs to see it
        loss: Tensor,
        gradient_BD: Tensor,
    ) -> Tensor:
        """Return the loss, and keep its gradient."""
        ctx.save_for_backward(gradient_BD)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient that was kept, times the loss's own."""
        (gradient_BD,) = ctx.saved_tensors
        return grad_outputs[0] * gradient_BD, None, None


def _partitions_of_my_queries(
    batch: GlobalBatch, bank: MemoryBank, world: World, temperature: float
) -> tuple[Partition, Partition]:
    """Return the partitions of the B local queries over all rows and over their positives.

    Both are exchanged by one packed collective.
    """
    with step_phase("partition"):
        partial_all = log_partition(
            batch.features_GD, bank.multiplied_SD, temperature, bank.products, bank.form
        )
    with step_phase("positives"):
        partial_positives = _partition_of_positives(batch, bank, temperature)
    with step_phase("exchanging parts"):
        log_z_WB, mean_WBD, positive_log_z_WB, positive_mean_WBD = exchange_parts(
            world, [*partial_all, *partial_positives]
        )
        return (
            merge_stacked(Partition(log_z_WB, mean_WBD)),
            merge_stacked(Partition(positive_log_z_WB, positive_mean_WBD)),
        )


def _partition_of_positives(batch: GlobalBatch, bank: MemoryBank, temperature: float) -> Partition:
    """Return the partition over {i} and its neighbours, as far as this shard holds them."""
    positives_GP = torch.cat([batch.rows_G[:, None], batch.neighbours_GK], dim=1)
    if len(bank.features_SD) == 0:
        return log_partition(batch.features_GD, bank.features_SD, temperature)
    is_here_GP, local_GP = bank.locate(positives_GP)
    rows_GPD = bank.features_SD[local_GP]
    return log_partition_of_own(batch.features_GD, rows_GPD, is_here_GP, temperature)
