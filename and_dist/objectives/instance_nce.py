"""Learn instances by noise-contrastive estimation (Wu, Xiong, Yu, Lin, CVPR 2018).

The softmax over all rows is replaced by telling a row from negatives drawn at random. Which rows
are drawn follows from (seed, step, query), so every rank knows all draws and looks at those it has.

B local batch, G global batch, D feature, M negatives of a query, P = M + 1 (the row itself first),
W world, X pairs of a query and a row of this shard, Y pairs of one block.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from and_dist.config.schema import Config
from and_dist.data.index import LabelledImages
from and_dist.distributed.collectives import exchange_parts, reduce_sum
from and_dist.method.loss import GlobalBatch, mean_over_batch
from and_dist.objectives.base import Objective, ObjectiveContext
from and_dist.utils.counter_random import GAMMA, derive_key

ROWS_PER_BLOCK = {"cpu": 1 << 14, "cuda": 1 << 18}
"""Rows of the bank that are copied at once."""
NEW_SHARE = 0.1
"""The share of the newest step in an estimated Z."""


class Contrast(NamedTuple):
    """Holds what the rows of one shard contribute to all ranks' queries."""

    loss_G: Tensor
    slope_GD: Tensor
    """The gradient of the loss times tau."""
    exp_sum: Tensor
    """The sum of exp(x . m / tau) over the negatives of all real queries."""


class InstanceNce(Objective):
    """Minimises -log h(i) - sum over negatives j of log(1 - h(j)), where h = p / (p + M / N) and
    p = exp(x . m / tau) / Z.

    Z = N * mean of the exp over negatives: of the first step for ever, as published, or estimated
    anew at every step and averaged.
    """

    sums_over_images = False

    def __init__(self, context: ObjectiveContext) -> None:
        """Begin at step 0, without a Z."""
        super().__init__(context)
        self._log_z = torch.zeros((), dtype=torch.float64, device=context.world.device)
        self._step = torch.zeros((), dtype=torch.int64)

    @classmethod
    def check(cls, config: Config, images: LabelledImages) -> None:
        """Raise ValueError for more negatives than images."""
        if config.instance_nce.negatives > len(images.index):
            raise ValueError(
                f"instance_nce.negatives = {config.instance_nce.negatives} are more than the "
                f"{len(images.index)} images of data.train={config.data.train}; take fewer, or "
                "method=instance, which compares with them all"
            )

    def tensors(self) -> dict[str, Tensor]:
        """Return log Z, and the number of steps, which the draws follow from."""
        return {"log_z": self._log_z, "step": self._step}

    def loss(self, features_BD: Tensor, batch: GlobalBatch) -> Tensor:
        """Return the mean loss over the real queries; the first step also estimates Z."""
        context = self.context
        rows_GP = self._draw(batch.rows_G)
        if self._step == 0:
            exp_sum = reduce_sum(context.world, self._contrast(batch, rows_GP).exp_sum)
            self._log_z.copy_(self._estimate_log_z(batch, exp_sum))
        self._step += 1
        partial = self._contrast(batch, rows_GP)
        exp_sum_G = partial.exp_sum.expand(len(batch.rows_G))  # all ranks learn all sums
        loss_WB, slope_WBD, exp_sum_WB = exchange_parts(
            context.world, [partial.loss_G, partial.slope_GD, exp_sum_G]
        )
        if context.config.instance_nce.z == "estimated":
            newest = self._estimate_log_z(batch, exp_sum_WB[:, 0].sum())
            old = self._log_z + math.log(1 - NEW_SHARE)
            self._log_z.copy_(torch.logaddexp(old, newest + math.log(NEW_SHARE)))
        loss_B, slope_BD = loss_WB.sum(dim=0), slope_WBD.sum(dim=0)
        temperature = context.config.objective.temperature
        return mean_over_batch(features_BD, loss_B, slope_BD, batch, context.world, temperature)

    def _draw(self, rows_G: Tensor) -> Tensor:
        """Return [G, P] each query's own row, and its negatives, uniform over all rows."""
        config = self.context.config
        key = derive_key(config.seed, "negatives", int(self._step))
        count, num_rows = config.instance_nce.negatives, self.context.bank.num_rows
        negatives_GM = draw_rows(key, rows_G.clamp(min=0), count, num_rows)
        return torch.cat([rows_G[:, None], negatives_GM], dim=1)

    def _estimate_log_z(self, batch: GlobalBatch, exp_sum: Tensor) -> Tensor:
        """Return log(N * mean exp) over the negatives of the real queries."""
        count = (batch.rows_G >= 0).sum().clamp(min=1) * self.context.config.instance_nce.negatives
        return (exp_sum / count * self.context.bank.num_rows).log()

    def _contrast(self, batch: GlobalBatch, rows_GP: Tensor) -> Contrast:
        """Contrast over the rows of this shard: h = sigmoid(x . m / tau - log Z - log(M / N))."""
        bank, features_GD = self.context.bank, batch.features_GD
        temperature, num_negatives = self.context.config.objective.temperature, rows_GP.shape[1] - 1
        found = Contrast(
            torch.zeros_like(features_GD[:, 0]),
            torch.zeros_like(features_GD),
            torch.zeros((), dtype=torch.float64, device=features_GD.device),
        )
        if len(bank.features_SD) == 0:
            return found
        is_here_GP, local_GP = bank.locate(rows_GP)
        pairs_X2 = (is_here_GP & (batch.rows_G >= 0)[:, None]).nonzero()
        for pairs_Y2 in pairs_X2.split(ROWS_PER_BLOCK[features_GD.device.type]):
            query_Y, place_Y = pairs_Y2.unbind(dim=1)
            rows_YD = bank.features_SD[local_GP[query_Y, place_Y]].to(features_GD.dtype)
            logits_Y = (rows_YD * features_GD[query_Y]).sum(dim=1) / temperature
            odds_Y = logits_Y - (self._log_z + math.log(num_negatives / bank.num_rows))
            sign_Y = torch.where(place_Y == 0, 1.0, -1.0)  # of the row itself, of negatives
            margin_Y = (sign_Y * odds_Y).to(logits_Y.dtype)
            slope_Y = -sign_Y.to(logits_Y.dtype) * torch.sigmoid(-margin_Y)
            found.loss_G.index_add_(0, query_Y, functional.softplus(-margin_Y))
            found.slope_GD.index_add_(0, query_Y, slope_Y[:, None] * rows_YD)
            found.exp_sum.add_(logits_Y.double().exp().where(place_Y > 0, 0).sum())
        return found


def draw_rows(key: np.uint64, counters_G: Tensor, num_draws: int, num_rows: int) -> Tensor:
    """Return [G, num_draws] counter_random.draw_bits modulo num_rows, computed on the device."""
    gamma, own = _as_signed(int(GAMMA)), _as_signed(int(key))
    stream_G = _mix(own ^ _mix(counters_G * gamma + gamma))
    steps_M = torch.arange(1, num_draws + 1, device=counters_G.device) * gamma
    bits_GM = _mix(stream_G[:, None] + steps_M)
    return (_shift(bits_GM, 1) % num_rows * 2 + (bits_GM & 1)) % num_rows


def _mix(bits: Tensor) -> Tensor:
    """Mix bits as counter_random.mix does, in torch's signed numbers, which wrap around alike."""
    bits = (bits ^ _shift(bits, 30)) * _as_signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shift(bits, 27)) * _as_signed(0x94D049BB133111EB)
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, count: int) -> Tensor:
    """Shift bits to the right, with zeros coming in from the left."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _as_signed(number: int) -> int:
    """Return the signed number with the bits of an unsigned one."""
    return number - (1 << 64) if number >= 1 << 63 else number
