"""Save checkpoints during training and resume from the newest valid one.

Tensors are copied, then a thread writes the copies. The threads of all ranks communicate over a
group of their own, so that their collectives and those of training never mix. Saves never overlap:
the next waits for the one before.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch

from and_dist.checkpoint.names import State, Tensors, parse_name, refuse_occupied
from and_dist.checkpoint.storage import find_latest_valid, prune, save_checkpoint
from and_dist.config.schema import Config
from and_dist.distributed.collectives import on_coordinator, raise_on_all_ranks
from and_dist.distributed.launch_env import AllRanksError
from and_dist.distributed.watchdog import Watchdog
from and_dist.distributed.world import World
from and_dist.method.memory_bank import MemoryBank
from and_dist.runs.metrics_file import Forgotten
from and_dist.runs.run_recorder import RunRecorder
from and_dist.training.components import Components
from and_dist.training.state import Progress

log = logging.getLogger(__name__)


class ResumePoint(NamedTuple):
    """Tells which checkpoint a run resumes from, and how far its metrics had come."""

    checkpoint: Path
    forgotten: Forgotten
    """What metrics.jsonl held before it was taken back; known to the coordinator alone."""


class CheckpointManager:
    """Saves a run's state while it trains, and takes state and metrics back to a checkpoint."""

    def __init__(
        self,
        config: Config,
        world: World,
        components: Components,
        recorder: RunRecorder,
        watchdog: Watchdog,
    ) -> None:
        """Keep what is saved, and the folder it goes to; write nothing yet."""
        self.folder = config.folder / "checkpoints"
        self._config = config
        self._world = world
        self._state = components.state
        self._index = components.index
        self._bad_images = components.bad_images
        self._recorder = recorder
        self._watchdog = watchdog
        self._writer = AsyncWriter(self.folder, world, config.run.keep, self._ends_a_round)
        self._saved_name = ""
        self._last_save = time.monotonic()

    def __enter__(self) -> CheckpointManager:
        """Return the manager, which closes at the end of training."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for a save in progress, less patiently after an error, and close the records."""
        self._writer.close(in_trouble=error is not None)
        self._recorder.close()

    def is_time_to_save(self) -> bool:
        """Return whether the last save is longer ago than the config allows."""
        return time.monotonic() - self._last_save > 60 * self._config.run.save_minutes

    def describe_last_save(self) -> str:
        """Say what is saved."""
        return f"saved as {self._saved_name}" if self._saved_name else "with nothing to save yet"

    def save(self) -> None:
        """Start writing a checkpoint, unless nothing is new since the last one."""
        progress = self._state.progress
        if not progress.is_begun or progress.checkpoint_name == self._saved_name:
            return
        self.finish()
        metrics_bytes, metrics_lines = self._recorder.metrics.size()
        plain = {
            **self._state.plain(),
            "images": {"rows": len(self._index), "content_hash": self._index.content_hash},
            "config": self._config.model_dump(mode="json"),
            "bad_images": dict(self._bad_images.reasons),
            "metrics_bytes": metrics_bytes,
            "metrics_lines": metrics_lines,
        }
        self._saved_name = progress.checkpoint_name
        log.info("saving %s", self._saved_name)
        tensors, flush = self._state.tensors(), self._recorder.flush
        self._writer.start(self._saved_name, tensors, self._state.bank, plain, flush)
        self._last_save = time.monotonic()

    def finish(self, must_succeed: bool = False) -> None:
        """Wait for the checkpoint that is being written, if one is."""
        saved = self._writer.finish()
        if saved is None:
            return
        if saved.failure and must_succeed:
            raise saved.failure
        if saved.failure:
            self._saved_name = ""
            self._recorder.display.say(f"{saved.failure}; training goes on and will save again")
            return
        log.info("saved %s in %.1f s", saved.name, saved.took)
        self._watchdog.seconds_to_save = saved.took
        self._recorder.write(
            "checkpoint", name=saved.name, seconds=saved.took, waited_seconds=saved.waited
        )

    def flush_metrics(self) -> None:
        """Put all metrics on the disk; raise AllRanksError where that fails."""
        with raise_on_all_ranks(self._world, "writing the last metrics"):
            self._recorder.flush()

    def resume(self) -> ResumePoint | None:
        """Load the newest valid checkpoint, if there is one, and take the metrics back to it."""
        self.finish()
        found = find_latest_valid(
            self.folder, self._world, self._recorder.display.say, needs="progress"
        )
        self._refuse_occupied(None if found is None else Progress(**found[1]["progress"]))
        what = "going back to the metrics of the checkpoint"
        if found is None:
            with raise_on_all_ranks(self._world, what):
                self._recorder.go_back_to(0)
            return None
        checkpoint, plain = found
        self._refuse_other_images(plain)
        self._state.load(checkpoint, plain, self._world)
        known = {int(row): why for row, why in plain["bad_images"].items()}
        # Filling a cache may have found more before.
        self._bad_images.reasons = known | self._bad_images.reasons
        self._saved_name = self._state.progress.checkpoint_name
        self._last_save = time.monotonic()
        with raise_on_all_ranks(self._world, what):
            forgotten = self._recorder.go_back_to(plain["metrics_bytes"], plain["metrics_lines"])
        return ResumePoint(checkpoint, forgotten)

    def _refuse_occupied(self, done: Progress | None) -> None:
        """Raise an error now, not at a save in some hours, if a user's folder is in the way."""
        what = "looking for room for the checkpoints to come"
        on_coordinator(self._world, what, lambda: self._check_names_to_come(done))

    def _check_names_to_come(self, done: Progress | None) -> None:
        """Raise NotOursError if a name that a later checkpoint will have is taken."""
        if not self.folder.is_dir():
            return
        epochs_of, last = self._config.epochs_of, self._config.last_round
        to_come = []
        for name in os.listdir(self.folder):
            place = parse_name(name)
            is_reached = place and place[0] <= last and place[1] <= epochs_of(place[0])
            if place and is_reached and (done is None or place > done.place):
                to_come.append(name)
        refuse_occupied(self.folder, to_come)

    def _refuse_other_images(self, plain: State) -> None:
        """Raise ValueError if the run was trained on other images."""
        images = plain["images"]
        if not self._index.holds(images["content_hash"]):
            raise ValueError(
                f"run folder {self._config.folder} was trained on other images than "
                f"data.train={self._config.data.train} holds now "
                f"({images['rows']} rows then, {len(self._index)} now)"
            )

    def _ends_a_round(self, name: str) -> bool:
        """Return whether a checkpoint is that of a finished round."""
        rounds, epochs_of = range(self._config.last_round + 1), self._config.epochs_of
        return name in {Progress(r, epochs_of(r)).checkpoint_name for r in rounds}


MOST_FAILURES = 3
"""Saves in a row whose failure ends a run; a disk that is full for a while fails fewer."""


SECONDS_TO_GIVE_UP = 10.0


class SaveResult(NamedTuple):
    """Tells what training waited for in one save, how long it took, and why it failed."""

    name: str
    waited: float
    took: float
    failure: AllRanksError | None


class AsyncWriter:
    """Writes checkpoints in a thread; `keeps_always` names those that are never removed."""

    def __init__(
        self, folder: Path, world: World, keep: int, keeps_always: Callable[[str], bool]
    ) -> None:
        """Begin without a save in progress."""
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
        bank: MemoryBank,
        state: dict[str, Any],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy everything and return, while a thread writes the copies.

        The thread calls `before` first: what the checkpoint relies on has to be on the disk.
        """
        assert self._thread is None
        self._name, self._started = name, time.monotonic()
        self._copy(tensors | {"bank": bank.features_SD})
        copied = {name: self._copies[name] for name in tensors}
        shard = MemoryBank(self._copies["bank"], bank.start, bank.num_rows, bank.update_rate)
        self._waited = time.monotonic() - self._started
        self._thread = threading.Thread(
            target=self._write, args=(name, copied, shard, state, before), name="saver", daemon=True
        )
        self._thread.start()

    def is_busy(self) -> bool:
        """Return whether a save is in progress."""
        return self._thread is not None and self._thread.is_alive()

    def finish(self) -> SaveResult | None:
        """Wait for the save in progress; return None where there is none. All ranks call it alike.

        Raise the failure once too many saves in a row have failed.
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
            return SaveResult(self._name, waited, self._took, None)
        self._num_failures += 1
        if self._num_failures >= MOST_FAILURES or not isinstance(failure, AllRanksError):
            raise failure
        return SaveResult(self._name, waited, self._took, failure)

    def close(self, in_trouble: bool) -> None:
        """Wait for a save in progress, after an error only for a while.

        It may yet end well, or wait for ranks that are gone.
        """
        if self._thread is not None:
            self._thread.join(SECONDS_TO_GIVE_UP if in_trouble else None)

    def _copy(self, tensors: Tensors) -> None:
        """Copy tensors into the same memory every time, page-locked where they come from a GPU."""
        for name, tensor in tensors.items():
            copy = self._copies.get(name)
            if copy is None or copy.shape != tensor.shape:
                copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
                self._copies[name] = copy
            copy.copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()

    def _write(
        self,
        name: str,
        tensors: Tensors,
        bank: MemoryBank,
        state: dict[str, Any],
        before: Callable[[], None],
    ) -> None:
        """Write a checkpoint and remove old ones; runs in the thread."""
        try:
            with raise_on_all_ranks(self._world, f"flushing the metrics before checkpoint {name}"):
                before()
            save_checkpoint(self._folder, name, tensors, state, self._world, bank)
            prune(self._folder, self._keep, self._keeps_always, self._world)
        except BaseException as error:  # raised by the next finish()
            self._failure = error
        self._took = time.monotonic() - self._started
