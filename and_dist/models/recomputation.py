"""Keep only what enters the blocks of a network, and compute them again for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from and_dist.models.stages import blocks_of


def recompute_blocks(trunk: nn.Module, name: str) -> None:
    """Make every block of a network forget what it has computed, once it is over.

    Raise ValueError for a network without blocks, which would be computed again as a whole for
    nothing.
    """
    blocks = blocks_of(trunk)
    if not blocks:
        raise ValueError(
            f"encoder.checkpointing: encoder.name={name} has no repeated blocks that could be "
            "computed again one by one"
        )
    for block in blocks:
        vars(block)["forward"] = _Recomputed(block)


class _Recomputed:
    """Is a block's forward pass, computed again in the backward pass."""

    def __init__(self, block: nn.Module) -> None:
        """Take a block, which goes on as it is where no gradient is asked for."""
        self._block = block
        self._forward = block.forward

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Return the block's output."""
        if not torch.is_grad_enabled() or not self._block.training:
            return self._forward(*inputs, **named)
        # Imported only here, because it loads what most runs do without.
        from torch.utils.checkpoint import checkpoint

        return checkpoint(
            self._forward, *inputs, use_reentrant=False, context_fn=self._contexts, **named
        )

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return what surrounds the first pass, and the second."""
        return nullcontext(), _statistics_at_rest(self._block)


@contextmanager
def _statistics_at_rest(block: nn.Module) -> Iterator[None]:
    """Keep batch norm from counting the same images twice in its running statistics."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    # The second pass ends as soon as it has what the backward pass needs, so nobody can say which
    # of them have counted it.
    counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    before = [count.clone() for count in counts]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for count, old in zip(counts, before, strict=True):
            count.copy_(old)
