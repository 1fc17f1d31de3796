"""Scale the steps of weight matrices by their norms: LARS (You, Gitman, Ginsburg, 2017).

A large batch asks for a large learning rate, at which a step of plain SGD may be longer than the
weights themselves in some layers while it is short in others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from and_dist.models.eager_optimisers import EagerSGD

ADAPTED = "trust"
"""The key of a group of parameters that holds its trust coefficient; 0 leaves gradients as they
are."""


class Lars(EagerSGD):
    """Is SGD, before which the gradient of each weight matrix w is

        trust * |w| / (|g| + decay * |w|) * (g + decay * w).

    As in torch's SGD, the learning rate is a factor of the momentum, not a part of it.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override] # no closure
        """Scale the gradients, then take a step of SGD."""
        for group in self.param_groups:
            if group[ADAPTED]:
                _scale(group["params"], group[ADAPTED], group["decay"])
        super().step(closure)


def _scale(parameters: list[Tensor], trust: float, decay: float) -> None:
    """Scale the gradients of some parameters where they are."""
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    lengths = torch.stack(torch._foreach_norm(trained))
    slopes = torch.stack(torch._foreach_norm(gradients))
    steps = slopes + decay * lengths
    # A matrix of zeros has no length to go by, and nothing is scaled where nothing is to be done.
    ratios = (trust * lengths / steps).where((lengths > 0) & (steps > 0), 1.0)
    torch._foreach_add_(gradients, trained, alpha=decay)
    torch._foreach_mul_(gradients, list(ratios.unbind()))
