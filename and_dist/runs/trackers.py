"""Write copies of metrics.jsonl for other programs: TensorBoard, Weights & Biases. No torch.

Each is written again from metrics.jsonl at every start, so that it repeats nothing and lacks
nothing. An error in one is reported once and ends that copy, not the run.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from and_dist.config.schema import Config
from and_dist.runs.curves import BY_ROUND, PICTURES, Record, curves_of, step_of
from and_dist.runs.folder import read_starts
from and_dist.runs.round_pictures import keep_pictures, picture_path, read_picture
from and_dist.runs.shown_config import shown_config
from and_dist.runs.tensorboard_file import TensorBoard
from and_dist.utils.folder_names import Named
from and_dist.utils.owned_files import NotOursError
from and_dist.utils.owned_folders import remove_tree

WRITTEN_BY_WANDB = Named(
    r"run-\w+\.wandb(\.synced)?|logs/debug[\w-]*\.log|"
    r"files/(config\.yaml|output\.log|requirements\.txt|wandb-(metadata|summary)\.json)|"
    rf"files/media/images/{PICTURES}_\d+_\w+\.png"
)


class Tracker(Protocol):
    """Writes a copy of metrics.jsonl for another program."""

    def write(self, record: Record) -> None:
        """Write the figures of a record."""

    def flush(self) -> None:
        """Put what was written on the disk."""

    def close(self) -> None:
        """End the copy."""


def check_trackers(config: Config) -> None:
    """Raise ValueError for a copy that cannot be made here."""
    if config.run.wandb != "off" and find_spec("wandb") is None:
        raise ValueError(
            f"run.wandb={config.run.wandb} needs wandb: pip install -e '.[wandb]'; or run.wandb=off"
        )


class Trackers:
    """Writes all copies that a config asks for; none of them can end a run."""

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        """Prepare the copies; open none yet."""
        self._say = say
        self._run = config.folder
        self._makers: dict[str, Callable[[], Tracker]] = {}
        if config.run.tensorboard:
            self._makers["TensorBoard"] = lambda: TensorBoard(config)
        if config.run.wandb != "off":
            self._makers["Weights & Biases"] = lambda: WeightsAndBiases(config)
        self._open: dict[str, Tracker] = {}

    @property
    def are_wanted(self) -> bool:
        """Return whether the config asks for any copy."""
        return bool(self._makers)

    def begin(self, records: Iterable[Record]) -> None:
        """Begin all copies anew, with the records so far and the pictures of their rounds.

        Remove the pictures of rounds that are yet to come, as after a roll-back.
        """
        self.close()
        for name, make in self._makers.items():
            with self._without(name):
                self._open[name] = make()
        discovered = set()
        for record in records:
            self.write(record)
            if record["event"] == "discovery":
                discovered.add(record["round"])
        with suppress(OSError):  # a picture that is left is written over
            keep_pictures(self._run, discovered)

    def write(self, record: Record) -> None:
        """Write a record to all copies."""
        for name, tracker in list(self._open.items()):
            with self._without(name):
                tracker.write(record)

    def flush(self) -> None:
        """Put all copies on the disk."""
        for name, tracker in list(self._open.items()):
            with self._without(name):
                tracker.flush()

    def close(self) -> None:
        """Close all copies."""
        for name, tracker in list(self._open.items()):
            with self._without(name):
                tracker.close()
        self._open.clear()

    @contextmanager
    def _without(self, name: str) -> Iterator[None]:
        """Enclose work on one copy: an error drops it until the next start."""
        try:
            yield
        except Exception as error:  # a broken copy must not end the run
            self._open.pop(name, None)
            self._say(f"no more {name} until the next start: {type(error).__name__}: {error}")


def check_links(folder: Path) -> None:
    """Raise NotOursError where wandb would replace something other than its own links."""
    for name in ("latest-run", "debug.log", "debug-internal.log", "debug-core.log"):
        place = folder / name
        is_link = place.is_symlink() and re.match(r"(offline-)?run-", os.readlink(place))
        if os.path.lexists(place) and not is_link:
            raise NotOursError(f"{place} was not written by wandb: move it away")


def _id_of(config: Config) -> str:
    """Return what tells a run from another of the same name."""
    first_start = read_starts(config.folder)[0]["started"]
    text = f"{config.folder.resolve()} {first_start}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class WeightsAndBiases:
    """Writes everything to one offline run in RUN/wandb, or to the run's own online."""

    def __init__(self, config: Config) -> None:
        """Open the run."""
        import wandb

        assert config.run.wandb != "off"
        check_links(config.folder / "wandb")
        if config.run.wandb == "offline":  # all of it is written again
            for folder in (config.folder / "wandb").glob(f"offline-run-*-{_id_of(config)}"):
                remove_tree(folder, WRITTEN_BY_WANDB)
        self._run = wandb.init(
            project="and-dist",
            name=config.name,
            id=_id_of(config),
            resume="allow",
            mode=config.run.wandb,
            dir=config.folder,
            config=shown_config(config),
            settings=wandb.Settings(silent=True, console="off"),
        )
        for group in BY_ROUND:
            self._run.define_metric(f"{group}/*", step_metric=f"{group}/index")
        self._folder = config.folder
        self._sent = self._run.step
        self._step = 0

    def write(self, record: Record) -> None:
        """Log the figures of a record, unless they were logged before."""
        self._step = step_of(record, self._step)
        curves: dict[str, Any] = dict(curves_of(record))
        if record["event"] in BY_ROUND:  # a round ends at the step where the next begins
            curves[f"{record['event']}/index"] = record["round"]
        if not curves or self._step < self._sent:
            return
        if record["event"] == "discovery" and read_picture(self._folder, record["round"]):
            from wandb import Image

            curves[PICTURES] = Image(str(picture_path(self._folder, record["round"])))
        self._run.log(curves, step=self._step)

    def flush(self) -> None:
        """Do nothing: wandb writes by itself."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
