"""Checkpoints written beside training: tensors are copied, then a thread writes the copies.

The threads of all ranks speak over a group of their own, so that their collectives and those of
training never meet. One save at a time: the next waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from and_dist.checkpoint.storage import Tensors, as_sharded, prune, save_checkpoint
from and_dist.distributed.collectives import failing_together
from and_dist.distributed.launch_env import SharedFailure
from and_dist.distributed.world import World
from and_dist.method.memory_bank import BankShard

MOST_FAILURES = 3
"""Saves that may fail one after the other: a disk that was full for a while ends no run."""
SECONDS_TO_GIVE_UP = 10.0


class Saved(NamedTuple):
    """One save: what training waited for, and how long everything took."""

    name: str
    waited: float
    took: float
    failure: str


class Saver:
    """`keeps_always` says of a checkpoint's name that it is not to be deleted."""

    def __init__(
        self, folder: Path, world: World, keep: int, keeps_always: Callable[[str], bool]
    ) -> None:
        self._folder = folder
        self._keep = keep
        self._keeps_always = keeps_always
        self._world = replace(world, group=world.side_group, device=torch.device("cpu"))
        self._copies: Tensors = {}
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._num_failures = 0
        self._name, self._waited, self._started, self._took = "", 0.0, 0.0, 0.0

    def start(
        self,
        name: str,
        tensors: Tensors,
        bank: BankShard,
        state: dict[str, Any],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Once the one before is finished, copy everything and return.

        The thread calls `before` first: what the checkpoint relies on has to be on the disk.
        """
        assert self._thread is None
        self._name, self._started = name, time.monotonic()
        self._copy(tensors | {"bank": bank.features_SD})
        shard = BankShard(self._copies["bank"], bank.start, bank.num_rows, bank.update_rate)
        staged = self._copies | {"bank": as_sharded(shard, self._world)}
        self._waited = time.monotonic() - self._started
        self._thread = threading.Thread(
            target=self._write, args=(name, staged, state, before), name="saver", daemon=True
        )
        self._thread.start()

    def is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def finish(self) -> Saved | None:
        """Wait for the save in progress; None where there is none. All ranks alike.

        SharedFailure once too many have failed.
        """
        if self._thread is None:
            return None
        started = time.monotonic()
        self._thread.join()
        self._thread = None
        waited = self._waited + time.monotonic() - started
        failure, self._failure = self._failure, None
        if failure is None:
            self._num_failures = 0
            return Saved(self._name, waited, self._took, "")
        self._num_failures += 1
        if self._num_failures >= MOST_FAILURES or not isinstance(failure, SharedFailure):
            raise failure
        return Saved(self._name, waited, self._took, str(failure))

    def close(self, in_trouble: bool) -> None:
        """A save in progress may yet end well, or wait for ranks that are gone."""
        if self._thread is not None:
            self._thread.join(SECONDS_TO_GIVE_UP if in_trouble else None)

    def _copy(self, tensors: Tensors) -> None:
        """Into the same memory every time, page-locked where it comes from a GPU."""
        for name, tensor in tensors.items():
            copy = self._copies.get(name)
            if copy is None or copy.shape != tensor.shape:
                copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
                self._copies[name] = copy
            copy.copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()

    def _write(
        self, name: str, tensors: Tensors, state: dict[str, Any], before: Callable[[], None]
    ) -> None:
        try:
            with failing_together(self._world, f"flushing the metrics before checkpoint {name}"):
                before()
            save_checkpoint(self._folder, name, tensors, state, self._world)
            prune(self._folder, self._keep, self._keeps_always, self._world)
        except BaseException as error:  # raised by the next finish()
            self._failure = error
        self._took = time.monotonic() - self._started
