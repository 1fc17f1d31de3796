"""The loss of a batch against a whole bank as others write it, and its gradient by autograd.

B batch, N all rows, P positives, X what says which rows are right, D feature.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURE = 0.07
Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(features, which rows are right, bank) -> loss, through which backward() goes."""


def published(
    features_BD: Tensor, positives_BP: Tensor, bank_ND: Tensor, temperature: float = TEMPERATURE
) -> Tensor:
    """The 2019 program's: all similarities, their softmax, the logarithm of its sum over the
    positives."""
    p_BN = (features_BD @ bank_ND.T).div_(temperature).softmax(dim=1)
    return -p_BN.gather(1, positives_BP).sum(dim=1).log().mean()


def eager(
    features_BD: Tensor, rows_B: Tensor, bank_ND: Tensor, temperature: float = TEMPERATURE
) -> Tensor:
    """What one would write today, of instances."""
    return functional.cross_entropy((features_BD / temperature) @ bank_ND.T, rows_B)


def differentiate(step: Step, features_BD: Tensor, right_BX: Tensor, bank_ND: Tensor) -> Tensor:
    """[B, 1 + D]: the loss beside its gradient."""
    features_BD = features_BD.detach().clone().requires_grad_()
    loss = step(features_BD, right_BX, bank_ND)
    loss.backward()
    assert features_BD.grad is not None
    return torch.cat([loss.detach().expand(len(features_BD), 1), features_BD.grad], dim=1)
