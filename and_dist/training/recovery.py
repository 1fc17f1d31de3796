"""Resume a run, and roll it back to the last checkpoint when a loss or a gradient is not finite."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from and_dist.config.schema import RunConfig
from and_dist.data.unreadable import BadImageError
from and_dist.distributed.collectives import on_coordinator
from and_dist.distributed.ddp import reset_powersgd_state
from and_dist.distributed.launch_env import AllRanksDiskError, AllRanksError
from and_dist.distributed.watchdog import Paused
from and_dist.distributed.world import World
from and_dist.runs.folder import record_loaded, record_resume
from and_dist.runs.metrics_file import read_metrics
from and_dist.runs.run_recorder import RunRecorder
from and_dist.training.checkpointing import CheckpointManager
from and_dist.training.components import Components
from and_dist.utils.disk_errors import DiskError

log = logging.getLogger(__name__)


class NonFiniteLoss(Exception):
    """Says that the loss or a gradient of a step is NaN or infinite, on all ranks."""

    def __init__(self, step: int) -> None:
        """Keep the step of the epoch under way."""
        self.step = step


class Recovery:
    """Takes a run back to its newest checkpoint: at its start, and after a NaN."""

    def __init__(
        self,
        settings: RunConfig,
        world: World,
        components: Components,
        checkpoint_manager: CheckpointManager,
        recorder: RunRecorder,
    ) -> None:
        """Keep what a run is taken back with."""
        self._settings = settings
        self._world = world
        self._components = components
        self._checkpoint_manager = checkpoint_manager
        self._recorder = recorder
        self._rolled_back: list[dict[str, Any]] = []

    def resume(self) -> bool:
        """Resume from the newest checkpoint; return whether there was one."""
        found = self._checkpoint_manager.resume()
        run = self._checkpoint_manager.folder.parent
        if found is None:
            on_coordinator(self._world, "recording the start", lambda: record_loaded(run))
            return False
        state, schedule = self._components.state, self._components.schedule
        done = schedule.steps_done(*state.progress.place)
        again = max(0, found.forgotten.last_step - done)
        lost = f", {again} steps are done again" if again else ""
        self._recorder.display.say(f"continuing from {found.checkpoint}{lost}")

        def record() -> None:
            record_resume(run, found.checkpoint.name, again, found.forgotten)
            self._recorder.write_goodput()

        on_coordinator(self._world, "recording the resume", record)
        return True

    def roll_back(self, step: int) -> None:
        """Resume from the last checkpoint, and leave out the batch of this step from now on."""
        components, state = self._components, self._components.state
        at = state.progress
        number = components.schedule.epoch_number(at.round_index, at.epochs)
        rows = components.order.global_rows(number, step).tolist()
        record = {"round": at.round_index, "epoch": at.epochs, "step": step, "rows": rows}
        sentence = describe_batch(record, self._recorder.path)
        skipped = [*state.skipped, [number, step]]
        if self._settings.non_finite == "stop" or len(skipped) > self._settings.most_roll_backs:
            self._recorder.write("non_finite", **record)
            folder = self._checkpoint_manager.folder
            raise AllRanksError(f"{sentence}; the last checkpoint is whole: {folder}")
        self._recorder.display.say(f"{sentence}; back to the last checkpoint, without them")
        self._rolled_back.append(record)
        if not self.resume():
            raise AllRanksError(f"{sentence}, and there is no checkpoint to go back to")
        reset_powersgd_state(components.network)
        state.skipped = skipped
        if self._world.is_coordinator:
            self._record_roll_backs()

    def _record_roll_backs(self) -> None:
        """Record all roll-backs that the metrics do not have: resuming takes these back too."""
        known = read_metrics(self._recorder.path, "rolled_back")
        for lost in self._rolled_back:
            if not any(lost.items() <= there.items() for there in known):
                self._recorder.write("rolled_back", **lost)


def describe_batch(record: dict[str, Any], path: Path) -> str:
    """Return a sentence about one {"round", "epoch", "step", "rows"} in the metrics at `path`."""
    rows = record["rows"]
    shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    return (
        f"the loss or a gradient is not finite at round {record['round']}, epoch "
        f"{record['epoch']}, step {record['step']} of it, rows {shown} (all {len(rows)} in {path})"
    )


@contextmanager
def print_traceback_on_error() -> Iterator[None]:
    """Log the traceback of what fails within, and raise it as a RuntimeError.

    What a user gave was refused before, but for images, which may be lost or changed at any time.
    All other errors are bugs or faults of the machine, and whoever mends them needs to know where
    they were raised.
    """
    try:
        yield
    except (AllRanksError, BadImageError):
        raise
    except (ValueError, RuntimeError) as error:
        log.exception("training failed")
        raise RuntimeError(error) from error


@contextmanager
def pause_on_disk_errors() -> Iterator[None]:
    """Raise an error of a disk as Paused: the same command goes on once the disk is mended."""
    try:
        yield
    except AllRanksDiskError as error:
        raise Paused(str(error), is_of_all_ranks=True) from error
    except DiskError as error:
        raise Paused(str(error), is_of_all_ranks=False) from error
