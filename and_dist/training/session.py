"""`and-dist train`: from a config to a trained run, on every rank."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from and_dist.checkpoint.storage import CorruptCheckpoint, list_checkpoints, read_latest
from and_dist.config.schema import Config
from and_dist.data.cache import check_cache
from and_dist.data.datasets import load_train_and_test
from and_dist.data.index import LabelledImages
from and_dist.data.unreadable import is_list_of
from and_dist.distributed.collectives import raise_on_all_ranks
from and_dist.distributed.launch_env import AllRanksError, read_launch_env
from and_dist.distributed.watchdog import SECONDS_BEYOND_STALL, Watchdog
from and_dist.distributed.world import World, open_world
from and_dist.method.discovery import check_discovery
from and_dist.models.encoders import ENCODERS, build_encoder
from and_dist.models.pretrained import load_weights
from and_dist.objectives.registry import check_objective
from and_dist.runs.console import Display, Style
from and_dist.runs.folder import check_run_folder, open_run_folder, record_run_end
from and_dist.runs.lock import hold_lock
from and_dist.runs.summary import as_table, write_summary
from and_dist.runs.trackers import check_trackers
from and_dist.training.trainer import Trainer
from and_dist.utils.owned_files import check_file


def run_training(config: Config, watchdog: Watchdog, style: Style = "auto") -> None:
    train, test = load_and_check(config)
    timeout = timedelta(seconds=config.run.stall_seconds + SECONDS_BEYOND_STALL)
    with open_world(config.run.device, config.run.threads, timeout) as world, ExitStack() as held:
        changed: list[str] = []
        with raise_on_all_ranks(world, "opening the run folder"):
            if world.is_coordinator:
                way_out = "wait for it, end it, or choose another name=..."
                held.enter_context(hold_lock(config.folder, "trained", way_out))
                changed = open_run_folder(config, world.size, world.device.type)
        display = Display(world.is_coordinator, style)
        introduce(config, train, world, changed, display)
        with record_run_end(config.folder, world.is_coordinator):
            trainer = Trainer(config, world, train, test, display, watchdog)
            with print_traceback_on_error():
                trainer.train()
        if world.is_coordinator:
            title = f"{config.name}, kNN: {trainer.evaluator.vote}"
            display.show(as_table(write_summary(config.folder), title))
            display.say(f"run folder: {config.folder}")


def load_and_check(config: Config) -> tuple[LabelledImages, LabelledImages | None]:
    """The images; ValueError for everything that can be refused, before anything is written."""
    if config.encoder.name not in ENCODERS:
        raise ValueError(
            f"encoder.name={config.encoder.name!r} is not one of: {', '.join(ENCODERS)}"
        )
    layout = read_launch_env()
    check_trackers(config)
    check_run_folder(config)
    with suppress(CorruptCheckpoint):  # which is looked into by all ranks together
        read_latest(config.folder / "checkpoints")
    train, test = load_train_and_test(config.data)
    check_sizes(config, len(train.index), layout.size)
    check_objective(config, train)
    check_cache(train.index, config.data)
    check_file(config.folder / "bad_images.txt", is_list_of(train.index))
    if config.encoder.weights and not list_checkpoints(config.folder / "checkpoints"):
        load_weights(build_encoder(config.encoder, config.seed), Path(config.encoder.weights))
    return train, test


def check_sizes(config: Config, num_rows: int, world_size: int) -> None:
    if num_rows < world_size:
        raise ValueError(
            f"data.train={config.data.train} has {num_rows} images for {world_size} ranks; "
            f"start at most {num_rows} workers"
        )
    if config.method == "and":
        check_discovery(
            num_rows,
            config.encoder.feature_dim,
            world_size,
            config.curriculum.neighbours,
            config.discovery.search,
            config.discovery.memory_bytes,
        )


def introduce(
    config: Config, train: LabelledImages, world: World, changed: list[str], display: Display
) -> None:
    """What is about to be trained, and what of it is not as one may expect."""
    display.say(
        f"{config.name}: {len(train.index):,} images, {config.encoder.name}, "
        f"{world.size} rank(s) on {world.device.type}, {describe_training(config)}"
    )
    if changed:
        display.say(f"not as at its last start: {', '.join(changed)}")
    if train.left_out:
        display.say(f"{len(train.left_out)} images left out: {config.folder}/bad_images.txt")
    if train.labels_N is None:
        display.say("no labels: consistency and kNN accuracy are not available")


def describe_training(config: Config) -> str:
    how = "" if config.method == "and" else f"method {config.method}, "
    rounds, epochs = config.last_round + 1, config.epochs_of(config.last_round)
    return f"{how}{rounds} round{'s' if rounds > 1 else ''} of {epochs} epochs"


@contextmanager
def print_traceback_on_error() -> Iterator[None]:
    """What fails from here on was not given by a user, and who mends it wants to know where."""
    try:
        yield
    except AllRanksError:
        raise
    except (ValueError, RuntimeError) as error:
        traceback.print_exc()
        raise RuntimeError(error) from error
