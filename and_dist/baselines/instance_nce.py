"""Instance learning by noise-contrastive estimation (Wu, Xiong, Yu, Lin, CVPR 2018).

The softmax over all rows is replaced by telling a row from negatives drawn at random. Which rows
are drawn follows from (seed, step, query), so every rank knows all draws and looks at those it has.

B local batch, G global batch, D feature, M negatives of a query, P = M + 1 (the row itself first),
Q queries of one block.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from and_dist.baselines.peer import Peer, Setting
from and_dist.collectives import exchange_parts, reduce_sum
from and_dist.config import Config
from and_dist.counter import derive_key, draw_bits
from and_dist.objective import GlobalBatch, mean_over_batch

ROWS_PER_BLOCK = 16384
"""Of the bank, copied at once."""
NEW_SHARE = 0.1
"""Of an estimated Z that comes from the newest step."""


class Contrast(NamedTuple):
    """What the rows of one shard say of everyone's queries."""

    loss_G: Tensor
    gradient_GD: Tensor
    exp_sum: Tensor
    """Of exp(x . m / tau) over the negatives of all real queries."""


class InstanceNce(Peer):
    """-log h(i) - sum over negatives j of log(1 - h(j)), where h = p / (p + M / N) and
    p = exp(x . m / tau) / Z.

    Z = N * mean of the exp over negatives: of the first step for ever, as published, or estimated
    anew at every step and averaged.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._log_z = torch.zeros((), dtype=torch.float64, device=setting.world.device)
        self._step = torch.zeros((), dtype=torch.int64)

    @classmethod
    def check(cls, config: Config, num_rows: int, has_labels: bool) -> None:  # noqa: ARG003
        if config.instance_nce.negatives > num_rows:
            raise ValueError(
                f"instance_nce.negatives = {config.instance_nce.negatives} are more than the "
                f"{num_rows} images of data.train={config.data.train}; take fewer, or "
                "method=instance, which compares with them all"
            )

    def tensors(self) -> dict[str, Tensor]:
        return {"log_z": self._log_z, "step": self._step}

    def loss(self, features_BD: Tensor, batch: GlobalBatch) -> Tensor:
        setting = self.setting
        rows_GP = self._draw(batch.rows_G)
        if self._step == 0:
            exp_sum = reduce_sum(setting.world, self._contrast(batch, rows_GP).exp_sum)
            self._log_z.copy_(self._estimate_log_z(batch, exp_sum))
        self._step += 1
        partial = self._contrast(batch, rows_GP)
        exp_sum_G = partial.exp_sum.expand(len(batch.rows_G))  # each rank tells all the others
        loss_WB, gradient_WBD, exp_sum_WB = exchange_parts(
            setting.world, [partial.loss_G, partial.gradient_GD, exp_sum_G]
        )
        if setting.config.instance_nce.z == "estimated":
            newest = self._estimate_log_z(batch, exp_sum_WB[:, 0].sum())
            old = self._log_z + math.log(1 - NEW_SHARE)
            self._log_z.copy_(torch.logaddexp(old, newest + math.log(NEW_SHARE)))
        loss_B, gradient_BD = loss_WB.sum(dim=0), gradient_WBD.sum(dim=0)
        return mean_over_batch(features_BD, loss_B, gradient_BD, batch, setting.world)

    def _draw(self, rows_G: Tensor) -> Tensor:
        """[G, P] each query's own row, and its negatives, uniform over all rows."""
        config, num_rows = self.setting.config, self.setting.bank.num_rows
        key = derive_key(config.seed, "negatives", int(self._step))
        bits_GM = draw_bits(key, rows_G.clamp(min=0).cpu().numpy(), config.instance_nce.negatives)
        negatives_GM = torch.from_numpy((bits_GM % np.uint64(num_rows)).astype(np.int64))
        return torch.cat([rows_G[:, None], negatives_GM.to(rows_G.device)], dim=1)

    def _estimate_log_z(self, batch: GlobalBatch, exp_sum: Tensor) -> Tensor:
        """log(N * mean exp) over the negatives of the real queries."""
        count = (batch.rows_G >= 0).sum().clamp(min=1) * self.setting.config.instance_nce.negatives
        return (exp_sum / count * self.setting.bank.num_rows).log()

    def _contrast(self, batch: GlobalBatch, rows_GP: Tensor) -> Contrast:
        """Over the rows of this shard, as many queries at a time as ROWS_PER_BLOCK allows."""
        features_GD, size = batch.features_GD, max(1, ROWS_PER_BLOCK // rows_GP.shape[1])
        exp_sum = torch.zeros((), dtype=torch.float64, device=features_GD.device)
        if len(self.setting.bank.features_SD) == 0:
            return Contrast(
                features_GD.new_zeros(len(rows_GP)),
                features_GD.new_zeros(features_GD.shape),
                exp_sum,
            )
        losses, gradients = [], []
        for features_QD, rows_QP in zip(features_GD.split(size), rows_GP.split(size), strict=True):
            loss_Q, gradient_QD, exp_sum_of_block = self._contrast_block(features_QD, rows_QP)
            losses.append(loss_Q)
            gradients.append(gradient_QD)
            exp_sum += exp_sum_of_block
        return Contrast(torch.cat(losses), torch.cat(gradients), exp_sum)

    def _contrast_block(self, features_QD: Tensor, rows_QP: Tensor) -> Contrast:
        """h is the sigmoid of x . m / tau - log Z - log(M / N): a logistic regression."""
        bank, config = self.setting.bank, self.setting.config
        temperature, num_negatives = config.objective.temperature, rows_QP.shape[1] - 1
        is_here_QP, local_QP = bank.locate(rows_QP)
        is_here_QP &= rows_QP[:, :1] >= 0
        rows_QPD = bank.features_SD[local_QP].to(features_QD.dtype)
        logits_QP = torch.einsum("qd,qpd->qp", features_QD, rows_QPD) / temperature
        sign_P = torch.full((num_negatives + 1,), -1.0, device=logits_QP.device)
        sign_P[0] = 1
        odds_QP = logits_QP - (self._log_z + math.log(num_negatives / bank.num_rows))
        margin_QP = sign_P * odds_QP.to(logits_QP.dtype)
        loss_QP = functional.softplus(-margin_QP).where(is_here_QP, 0)
        slope_QP = (-sign_P * torch.sigmoid(-margin_QP)).where(is_here_QP, 0)
        gradient_QD = torch.einsum("qp,qpd->qd", slope_QP, rows_QPD) / temperature
        exp_QM = logits_QP[:, 1:].double().exp().where(is_here_QP[:, 1:], 0)
        return Contrast(loss_QP.sum(dim=1), gradient_QD, exp_QM.sum())
