"""Train a run from its config: check it, open its folder and the world, train, summarise."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import Any

from and_dist.checkpoint.names import list_checkpoints
from and_dist.checkpoint.storage import CorruptCheckpoint, read_latest
from and_dist.config.schema import Config
from and_dist.config.trust import trusting
from and_dist.data.cache import check_cache
from and_dist.data.datasets import NOT_REPORTED, load_train_and_test
from and_dist.data.index import LabelledImages
from and_dist.data.unreadable import is_list_of
from and_dist.distributed.collectives import on_coordinator
from and_dist.distributed.launch_env import is_rank_zero, read_launch_env
from and_dist.distributed.watchdog import SECONDS_BEYOND_STALL, Watchdog
from and_dist.distributed.world import World, open_world
from and_dist.models.arithmetic import repeatable_sums
from and_dist.models.encoders import build_encoder, check_encoder
from and_dist.models.shapes import check_image_size
from and_dist.objectives.base import check_objective
from and_dist.runs.console import Bars, Display, Style
from and_dist.runs.folder import (
    check_run_folder,
    keep_choices_of_run,
    open_run_folder,
    record_run_end,
)
from and_dist.runs.lock import hold_lock
from and_dist.runs.summary import as_table, write_summary
from and_dist.runs.trackers import check_trackers
from and_dist.training.accumulation import check_parts
from and_dist.training.choices import choose_settings
from and_dist.training.first_weights import load_first_weights
from and_dist.training.published import check_published
from and_dist.training.trainer import Trainer
from and_dist.training.trial import predict_seconds
from and_dist.utils.formatting import format_seconds
from and_dist.utils.owned_files import check_file
from and_dist.utils.progress import Reporter


def run_training(
    config: Config, watchdog: Watchdog, style: Style = "auto", is_predicted: bool = False
) -> dict[str, Any]:
    """Train a run, or resume it, on this rank; return its summary once it is finished.

    Say about how long it will take if it is to be predicted.
    """
    with trusting():  # whoever trains by a config has read what it names
        return _train(config, watchdog, Display(is_rank_zero(), style), is_predicted)


def _train(
    config: Config, watchdog: Watchdog, display: Display, is_predicted: bool
) -> dict[str, Any]:
    """Train a run, or resume it; return its summary."""
    with Bars(display.console) as bars:
        train, test = load_and_check(config, bars)
    config = keep_choices_of_run(config)
    timeout = timedelta(seconds=config.run.stall_seconds + SECONDS_BEYOND_STALL)
    with open_world(config.run.device, config.run.threads, timeout) as world, ExitStack() as held:
        config, figures = choose_settings(config, len(train.index), world)

        def lock_and_open() -> list[str]:
            way_out = "wait for it, end it, or choose another name=..."
            held.enter_context(hold_lock(config.folder, "trained", way_out))
            return open_run_folder(config, world.size, world.device.type, figures)

        changed = on_coordinator(world, "opening the run folder", lock_and_open)
        introduce(config, train, world, changed, display)
        held.enter_context(repeatable_sums(world.device, config.encoder.deterministic))
        if is_predicted:
            seconds = predict_seconds(config, train, world)
            display.say(f"it will take about {format_seconds(seconds)} on this machine")
        with record_run_end(config.folder, world.is_coordinator):
            trainer = Trainer(config, world, train, test, display, watchdog)
            trainer.train()
        summary = on_coordinator(world, "writing the summary", lambda: write_summary(config.folder))
        has_labels = any(r["knn"] is not None for r in summary["rounds"])
        vote = trainer.components.evaluator.vote
        title = f"{config.name}, in %, kNN with {vote}" if has_labels else config.name
        display.show(as_table(summary, title, config.encoder.at_first, display.has_symbols))
        display.say(f"run folder: {config.folder}")
        return summary


def load_and_check(
    config: Config, reporter: Reporter = NOT_REPORTED
) -> tuple[LabelledImages, LabelledImages | None]:
    """Return the images; raise ValueError for bad input before anything is written."""
    check_encoder(config.encoder)
    check_image_size(config.encoder, config.data.image_size)
    check_trackers(config)
    check_run_folder(config)
    with suppress(CorruptCheckpoint):  # all ranks look into it together, when they resume
        read_latest(config.folder / "checkpoints")
    train, test = load_train_and_test(config.data, reporter)
    check_ranks(config, len(train.index), read_launch_env().size)
    check_parts(config.optim, len(train.index), read_launch_env().size)
    check_objective(config, train)
    check_cache(train.index, config.data)
    check_file(config.folder / "bad_images.txt", is_list_of(train.index))
    if not list_checkpoints(config.folder / "checkpoints"):
        if config.encoder.weights:
            encoder = build_encoder(config.encoder, config.seed, config.data.image_size)
            load_first_weights(encoder, config)
        check_published(config, train.labels_N, len(train.index))
    return train, test


def check_ranks(config: Config, num_rows: int, num_ranks: int) -> None:
    """Raise ValueError if there are more ranks than images."""
    if num_rows < num_ranks:
        raise ValueError(
            f"data.train={config.data.train} has {num_rows} images for {num_ranks} ranks; "
            f"start at most {num_rows} workers"
        )


def introduce(
    config: Config, train: LabelledImages, world: World, changed: list[str], display: Display
) -> None:
    """Say what is about to be trained, and what about it a user may not expect."""
    display.say(
        f"{config.name}: {len(train.index):,} images, {config.encoder.name}, "
        f"{world.size} rank(s) on {world.device.type}, {describe_training(config)}"
    )
    if changed:
        display.say(f"not as at its last start: {', '.join(changed)}")
    if train.ignored:
        display.say(f"ignored in {config.data.train}, since they are no images: {train.ignored}")
    if train.left_out:
        display.say(f"{len(train.left_out):,} images left out: {config.folder}/bad_images.txt")
    if train.labels_N is None:
        display.say("no labels: consistency and kNN accuracy are not available")


def describe_training(config: Config) -> str:
    """Describe the method and the length of a run."""
    how = "" if config.method == "and" else f"method {config.method}, "
    rounds, epochs = config.last_round + 1, config.epochs_of(config.last_round)
    return f"{how}{rounds} round{'s' if rounds > 1 else ''} of {epochs} epochs"
