"""Take torch's optimisers out of what keeps torch.compile away from them.

That would load torch.compile, for which every rank would wait nearly a second. Only an encoder is
ever compiled here, so there is nothing to keep away.
"""

from __future__ import annotations

import inspect

import torch


class EagerSGD(torch.optim.SGD):
    """Is torch's SGD."""

    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class EagerAdamW(torch.optim.AdamW):
    """Is torch's AdamW."""

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
