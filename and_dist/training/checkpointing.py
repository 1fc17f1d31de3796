"""Keeper: what a run goes on from is saved while it trains, and found again when it starts."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from and_dist.checkpoint.storage import State, find_whole, parse_name, refuse_occupied
from and_dist.config.schema import Config
from and_dist.data.index import ImageIndex
from and_dist.data.unreadable import BadImages
from and_dist.distributed.collectives import failing_together
from and_dist.distributed.launch_env import SharedFailure
from and_dist.distributed.watchdog import Guard
from and_dist.distributed.world import World
from and_dist.runs.run_recorder import Journal
from and_dist.training.saving import Saver
from and_dist.training.state import Progress, RunState


class Resumed(NamedTuple):
    """Where a run goes on, and how far its metrics had come."""

    checkpoint: Path
    last_step: int
    """The last one in metrics.jsonl before that went back; on the coordinator."""


class Keeper:
    """Between a run's state and its folder; its journal goes back with it."""

    def __init__(
        self,
        config: Config,
        world: World,
        state: RunState,
        index: ImageIndex,
        bad_images: BadImages,
        journal: Journal,
        guard: Guard,
    ) -> None:
        self.folder = config.folder / "checkpoints"
        self._config = config
        self._world = world
        self._state = state
        self._index = index
        self._bad_images = bad_images
        self._journal = journal
        self._guard = guard
        self._saver = Saver(self.folder, world, config.run.keep, self._ends_a_round)
        self._saved_name = ""
        self._last_save = time.monotonic()

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._saver.close(in_trouble=error is not None)
        self._journal.close()

    def is_time_to_save(self) -> bool:
        return time.monotonic() - self._last_save > 60 * self._config.run.save_minutes

    def describe_last_save(self) -> str:
        return f"saved as {self._saved_name}" if self._saved_name else "with nothing to save yet"

    def save(self) -> None:
        """Begin to write a checkpoint, unless there is nothing new since the last one."""
        progress = self._state.progress
        if not progress.is_begun or progress.checkpoint_name == self._saved_name:
            return
        self.finish()
        plain = {
            **self._state.plain(),
            "images": {"rows": len(self._index), "content_hash": self._index.content_hash},
            "config": self._config.model_dump(mode="json"),
            "bad_images": dict(self._bad_images.reasons),
            "metrics_bytes": self._journal.metrics.size(),
        }
        self._saved_name = progress.checkpoint_name
        tensors, flush = self._state.tensors(), self._journal.flush
        self._saver.start(self._saved_name, tensors, self._state.bank, plain, flush)
        self._last_save = time.monotonic()

    def finish(self, must_succeed: bool = False) -> None:
        """Wait for the checkpoint that is being written, if one is."""
        saved = self._saver.finish()
        if saved is None:
            return
        if saved.failure and must_succeed:
            raise SharedFailure(saved.failure)
        if saved.failure:
            self._saved_name = ""
            self._journal.display.say(f"{saved.failure}; training goes on and will save again")
            return
        self._guard.seconds_to_save = saved.took
        self._journal.write(
            "checkpoint", name=saved.name, seconds=saved.took, waited_seconds=saved.waited
        )

    def resume(self) -> Resumed | None:
        """Go on from the newest whole checkpoint, if there is one; its metrics with it."""
        self.finish()
        found = find_whole(self.folder, self._world, self._journal.display.say)
        self._refuse_occupied(None if found is None else Progress(**found[1]["progress"]))
        if found is None:
            self._journal.go_back_to(0)
            return None
        checkpoint, plain = found
        self._refuse_other_images(plain)
        self._state.load(checkpoint, plain, self._world)
        known = {int(row): why for row, why in plain["bad_images"].items()}
        self._bad_images.reasons = known | self._bad_images.reasons  # filling a cache found some
        self._saved_name = self._state.progress.checkpoint_name
        self._last_save = time.monotonic()
        with failing_together(self._world, "going back to the metrics of the checkpoint"):
            last_step = self._journal.go_back_to(plain["metrics_bytes"])
        return Resumed(checkpoint, last_step)

    def _refuse_occupied(self, done: Progress | None) -> None:
        """End now, and not at a save in some hours, where a folder of a user's is in the way."""
        with failing_together(self._world, "looking for room for the checkpoints to come"):
            if self._world.is_coordinator and self.folder.is_dir():
                epochs_of, last = self._config.epochs_of, self._config.last_round
                to_come = []
                for name in os.listdir(self.folder):
                    place = parse_name(name)
                    is_reached = place and place[0] <= last and place[1] <= epochs_of(place[0])
                    if place and is_reached and (done is None or place > done.place):
                        to_come.append(name)
                refuse_occupied(self.folder, to_come)

    def _refuse_other_images(self, plain: State) -> None:
        images = plain["images"]
        if images["content_hash"] != self._index.content_hash:
            raise ValueError(
                f"run folder {self._config.folder} was trained on other images than "
                f"data.train={self._config.data.train} holds now "
                f"({images['rows']} rows then, {len(self._index)} now)"
            )

    def _ends_a_round(self, name: str) -> bool:
        rounds, epochs_of = range(self._config.last_round + 1), self._config.epochs_of
        return name in {Progress(r, epochs_of(r)).checkpoint_name for r in rounds}
