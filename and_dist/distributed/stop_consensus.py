"""Agree on what the ranks have been asked to do, without waiting.

Each rank's request travels with its features in every step. What one step gathers is looked at
after the next, when a GPU has long computed it: all ranks see the same numbers, and none waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from and_dist.distributed.collectives import gather_batch
from and_dist.distributed.watchdog import NOTHING, SAVE, Watchdog
from and_dist.distributed.world import World
from and_dist.utils.progress import Advance


class StopConsensus:
    """Holds the most urgent request of all ranks, as of the step before the last."""

    def __init__(self) -> None:
        """Begin without a request."""
        self._latest = self._before = _Reading(None)

    def record(self, requests_G: Tensor) -> None:
        """Take the requests that one step has gathered."""
        self._before, self._latest = self._latest, _Reading(requests_G)

    def latest(self) -> int:
        """Return the most urgent request of the step before the last."""
        return self._before.value()

    def reset(self) -> None:
        """Forget requests that were carried out; a request to stop comes again by itself."""
        self._latest = self._before = _Reading(None)


def agree_now(request: int, world: World) -> int:
    """Return the most urgent request of all ranks, by one small collective."""
    mine = torch.tensor([[request]], dtype=torch.uint8, device=world.device)
    return int(gather_batch(world, [mine])[0].max())


@contextmanager
def stoppable_phase(
    phase: AbstractContextManager[Advance],
    watchdog: Watchdog,
    world: World,
    handle_request: Callable[[int], None],
) -> Iterator[Advance]:
    """Enclose longer work between steps, in which the run can be stopped.

    All ranks advance equally often, so all can agree on a request at each advance.
    """
    with phase as advance:

        def advance_or_stop(share: float) -> None:
            advance(share)
            watchdog.beat()
            request = agree_now(watchdog.request(), world)
            if request > SAVE:
                handle_request(request)

        yield advance_or_stop


class _Reading:
    """Holds the largest of some numbers, on its way to the CPU."""

    def __init__(self, numbers: Tensor | None) -> None:
        """Start the copy, which nothing waits for."""
        self._largest: Tensor | None = None
        self._event: torch.cuda.Event | None = None
        if numbers is None:
            return
        self._largest = numbers.max()
        if numbers.is_cuda:
            pinned = torch.empty((), dtype=numbers.dtype, pin_memory=True)
            self._largest = pinned.copy_(self._largest, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def value(self) -> int:
        """Return the number, once the copy is there."""
        if self._largest is None:
            return NOTHING
        if self._event is not None:
            self._event.synchronize()
        return int(self._largest)
