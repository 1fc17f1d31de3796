"""What the ranks have been asked to do, agreed on without waiting.

Each rank's request travels with its features in every step. What was gathered in one step is looked
at after the next, when a GPU has long had it: all ranks see the same numbers, and none waits.
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
    """The most urgent request of all ranks, as of the step before the last."""

    def __init__(self) -> None:
        self._latest = self._before = _Reading(None)

    def record(self, requests_G: Tensor) -> None:
        """What one step has gathered."""
        self._before, self._latest = self._latest, _Reading(requests_G)

    def latest(self) -> int:
        return self._before.value()

    def reset(self) -> None:
        """What was asked for is done; a request to stop is made again in the next step."""
        self._latest = self._before = _Reading(None)


def agree_now(request: int, world: World) -> int:
    """The most urgent request of all ranks; one small collective."""
    mine = torch.tensor([[request]], dtype=torch.uint8, device=world.device)
    return int(gather_batch(world, [mine])[0].max())


@contextmanager
def stoppable_phase(
    phase: AbstractContextManager[Advance],
    watchdog: Watchdog,
    world: World,
    handle_request: Callable[[int], None],
) -> Iterator[Advance]:
    """A phase of something longer between steps. All ranks advance alike, so all can stop."""
    with phase as advance:

        def advance_or_stop(share: float) -> None:
            advance(share)
            watchdog.beat()
            request = agree_now(watchdog.request(), world)
            if request > SAVE:
                handle_request(request)

        yield advance_or_stop


class _Reading:
    """The largest of some numbers, on its way to the CPU."""

    def __init__(self, numbers: Tensor | None) -> None:
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
        if self._largest is None:
            return NOTHING
        if self._event is not None:
            self._event.synchronize()
        return int(self._largest)
