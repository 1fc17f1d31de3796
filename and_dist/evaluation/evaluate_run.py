"""Evaluate a checkpoint by kNN and by linear classifiers (`and-dist evaluate RUN`).

Write RUN/evaluation/CHECKPOINT/knn.json, linear.json and linear-ten-crop.json with the figures and
their protocol, and bad_images.txt and bad_test_images.txt with the images that cannot be read.

M test images of this rank, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from and_dist.checkpoint.reader import (
    OpenedCheckpoint,
    known_bad,
    load_bank,
    load_encoder,
    open_checkpoint,
    refuse_corrupt,
)
from and_dist.config.comparison import TEST_KEYS
from and_dist.config.schema import Config
from and_dist.data.datasets import load_train_and_test
from and_dist.data.index import LabelledImages
from and_dist.data.unreadable import is_list_of
from and_dist.distributed.collectives import on_coordinator
from and_dist.distributed.stop_consensus import stoppable_phase
from and_dist.distributed.watchdog import Stopped, Watchdog
from and_dist.distributed.world import World
from and_dist.evaluation.accuracy import score
from and_dist.evaluation.evaluator import Evaluator
from and_dist.evaluation.probe import FrozenLayers
from and_dist.evaluation.probe_training import ProbeTraining, data_of_classifiers
from and_dist.method.memory_bank import shard_range
from and_dist.models.encoders import Encoder, build_encoder, stages
from and_dist.runs.console import Display
from and_dist.runs.lock import is_lock
from and_dist.runs.records import read_evaluation, write_record
from and_dist.utils.formatting import as_text, percent
from and_dist.utils.owned_files import (
    check_file,
    check_writable,
    clear_unfinished,
    is_json_with,
    make_folder,
)
from and_dist.utils.progress import Advance

MAY_CHANGE = (
    "data.train",
    *(f"data.{key}" for key in TEST_KEYS),
    "data.bad_images",
    "data.hardware_decoder",
)
"""The config keys that overrides may change, besides those that a resumed run may change."""
MOST_CLASSES_SHOWN = 20
"""The largest number of classes that the table of classes shows in full."""
is_figures = is_json_with("run", "checkpoint", "of")
Figures = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """Hold the user's choice of what to evaluate, not checked yet."""

    with_knn: bool = False
    with_linear: bool = False
    layers: str | None = None
    """Names of layers for the linear classifiers, separated by commas; None means all layers."""
    is_ten_crop: bool = False


@dataclass(frozen=True)
class EvaluateOptions:
    """Hold the checked inputs of one evaluation."""

    opened: OpenedCheckpoint
    train: LabelledImages
    test: LabelledImages
    with_knn: bool
    layers: tuple[str, ...]
    """The layers that get a linear classifier; empty means no linear evaluation."""
    is_ten_crop: bool

    @property
    def config(self) -> Config:
        """Return the run's config with the overrides applied."""
        return self.opened.config

    @property
    def folder(self) -> Path:
        """Return the folder that the evaluation of this checkpoint is written to."""
        return self.opened.evaluation


def plan_evaluation(
    run: Path, checkpoint: str | None, overrides: Sequence[str], request: Request
) -> EvaluateOptions:
    """Check the inputs of an evaluation and return them; write nothing.

    Raise ValueError for options that contradict each other or the run, for images without labels,
    and for output files that this program did not write.
    """
    if not (request.with_knn or request.with_linear):
        raise ValueError("say what to evaluate by: --knn, --linear or both")
    if request.layers is not None and not request.with_linear:
        raise ValueError("--layers needs --linear; kNN uses the features alone")
    opened = open_checkpoint(run, checkpoint, overrides, MAY_CHANGE)
    config = opened.config
    train, test = load_train_and_test(config.data)
    if not train.index.holds(opened.state["images"]["content_hash"]):
        raise ValueError(
            f"{run} was trained on other images than data.train={config.data.train} holds now"
        )
    layers = _choose_layers(config, request.layers) if request.with_linear else ()
    if request.is_ten_crop:
        _check_ten_crop(config, request.with_linear)
    labelled = _check_labels(opened, train, test)
    options = EvaluateOptions(
        opened, train, labelled, request.with_knn, layers, request.is_ten_crop
    )
    _check_files(options)
    return options


def _check_files(options: EvaluateOptions) -> None:
    """Raise ValueError if an output file exists that this program did not write."""
    folder = options.folder
    check_writable(folder, str(folder))
    for kind in ("knn", "linear", "linear-ten-crop"):
        check_file(folder / f"{kind}.json", is_figures)
    check_file(folder / "lock", is_lock)
    check_file(folder / "bad_images.txt", is_list_of(options.train.index))
    check_file(folder / "bad_test_images.txt", is_list_of(options.test.index))


def run_evaluation(
    options: EvaluateOptions, world: World, display: Display, watchdog: Watchdog
) -> None:
    """Evaluate the checkpoint by kNN, linear classifiers or both; write and show the figures.

    Raise ValueError if the checkpoint is corrupt, and Stopped if a rank is asked to stop.
    """
    opened, run = options.opened, options.config.run
    watchdog.watch(opened.run, run.stall_seconds, run.time_limit_seconds)
    refuse_corrupt(opened, world)
    encoder = load_encoder(opened, world)
    if options.with_knn:
        _evaluate_knn(options, encoder, world, display, watchdog)
    if options.layers:
        _evaluate_linear(options, encoder, world, display, watchdog)


def _evaluate_knn(
    options: EvaluateOptions, encoder: Encoder, world: World, display: Display, watchdog: Watchdog
) -> None:
    """Evaluate by kNN, with the bank and with newly computed features."""
    config, settings = options.config, options.config.evaluation
    voters = min(settings.knn, len(options.train.index))
    protocol = {"knn": voters, "knn_temperature": settings.knn_temperature}
    file = FigureFile(options, "knn", {"protocol": protocol}, world, display)
    if before := file.read():
        file.show(before)
        display.say(f"evaluated before: {file.path}")
        return

    def phase(what: str) -> AbstractContextManager[Advance]:
        return stoppable_phase(display.phase(what), watchdog, world, _stop_without_result)

    bad = known_bad(options.opened, options.train)
    evaluator = Evaluator(config, options.train, options.test, world, bad, phase)
    *places, _ = evaluator.places_of_both(encoder, load_bank(options.opened, world))
    evaluator.share_bad_images(options.folder)
    names = {"bank": "kNN by the bank", "recomputed": "kNN recomputed"}
    scores = _score_all(options, places, world)
    file.write(
        {
            name: {"says": f"{said}, {evaluator.vote}", **figures}
            for (name, said), figures in zip(names.items(), scores, strict=True)
        }
    )


def _stop_without_result(request: int) -> None:
    """Raise Stopped: a kNN evaluation keeps nothing of what it has done so far."""
    raise Stopped(request, "with nothing of kNN kept")


def _evaluate_linear(
    options: EvaluateOptions, encoder: Encoder, world: World, display: Display, watchdog: Watchdog
) -> None:
    """Train or resume linear classifiers on the chosen layers and evaluate them."""
    layers = FrozenLayers(encoder, options.layers)
    probing = ProbeTraining(options.opened, layers, options.train, world, display, watchdog)
    probing.train()
    places_LM = probing.places(options.test, options.is_ten_crop)
    how = "ten crops" if options.is_ten_crop else "one view"
    protocol = {"linear": options.config.evaluation.linear.model_dump(mode="json")}
    about = {"protocol": protocol, "ten_crop": options.is_ten_crop}
    kind = "linear-ten-crop" if options.is_ten_crop else "linear"
    file = FigureFile(options, kind, about, world, display)
    losses = zip(*probing.losses, strict=True)
    scores = _score_all(options, list(places_LM), world)
    file.write(
        {
            layer: {"says": f"linear {layer}, {how}", **figures, "losses": list(of_layer)}
            for layer, figures, of_layer in zip(options.layers, scores, losses, strict=True)
        }
    )


class FigureFile:
    """Read and write one file of figures; ignore those of other weights, images or protocols."""

    def __init__(
        self, options: EvaluateOptions, kind: str, about: Figures, world: World, display: Display
    ) -> None:
        """Describe the evaluation by `about`, which the figures in the file have to match."""
        opened, test = options.opened, options.test
        self.path = options.folder / f"{kind}.json"
        self._world, self._display = world, display
        self._title = f"{opened.config.name}, {opened.checkpoint.name}"
        self._record = {
            "run": opened.config.name,
            "checkpoint": opened.checkpoint.name,
            "weights": opened.weights,
            "round": opened.state["progress"]["round_index"],
            "train": options.config.data.train,
            **{key: getattr(options.config.data, key) for key in TEST_KEYS},
            "test_images": test.index.content_hash,
            **about,
        }

    def read(self) -> Figures:
        """Return the figures of an earlier, equal evaluation, or {}; all ranks call this together.

        Only the coordinator reads, so that all ranks see the same file.
        """

        def read_if_there() -> Figures:
            clear_unfinished(self.path)  # a disk that failed has kept what was published already
            return (read_evaluation(self.path) if self.path.exists() else None) or {}

        found = on_coordinator(self._world, f"reading {self.path}", read_if_there)
        is_same = all(found.get(key) == value for key, value in self._record.items())
        return dict(found["of"]) if is_same else {}

    def write(self, of: Figures) -> None:
        """Write and show figures; all ranks call this together.

        The figures of other layers stay in the file: the classifiers of two layers are independent.
        """
        record = {**self._record, "of": self.read() | of}

        def write_figures() -> None:
            make_folder(self.path.parent)
            write_record(self.path, record, is_figures)

        on_coordinator(self._world, f"writing {self.path}", write_figures)
        self.show(of)
        self._display.say(f"written to {self.path}")

    def show(self, of: Figures) -> None:
        """Show the figures as two tables."""
        self._display.show(as_table(of, self._title))
        self._display.show(as_class_table(of))


def _score_all(
    options: EvaluateOptions, places: Sequence[Tensor], world: World
) -> list[dict[str, Any]]:
    """Return the accuracies for each [M] of places; count left-out test images as unreadable."""
    test = options.test
    assert test.labels_N is not None
    start, stop = shard_range(len(test.index), world.rank, world.size)
    labels_M = torch.tensor(test.labels_N[start:stop])
    found = [score(places_M, labels_M, test.class_names, world) for places_M in places]
    for figures in found:
        figures["unreadable"] += len(test.left_out)
    return found


def as_table(of: Figures, title: str) -> Table:
    """Return a table of top-1, its interval, top-5 and the number of images."""
    table = Table(title=title, title_justify="left")
    table.add_column("by")
    for column in ("top-1 %", "95 % interval", "top-5 %", "images"):
        table.add_column(column, justify="right", no_wrap=True)
    for figures in of.values():
        low, high = figures["interval"]
        unread = f", {figures['unreadable']:,} unreadable" if figures["unreadable"] else ""
        table.add_row(
            figures["says"],
            percent(figures["top1"]),
            f"{percent(low)} - {percent(high)}",
            percent(figures["top5"]),
            f"{figures['images']:,}{unread}",
        )
    return table


def as_class_table(of: Figures) -> Table:
    """Return a table of top-1 by class.

    With more than MOST_CLASSES_SHOWN classes only the worst and the best are shown, sorted by the
    last of the evaluated kinds.
    """
    kinds = list(of)
    last = of[kinds[-1]]["per_class"]
    known = sorted((name for name in last if last[name] is not None), key=last.__getitem__)
    half = MOST_CLASSES_SHOWN // 2
    shown = known if len(known) <= MOST_CLASSES_SHOWN else [*known[:half], *known[-half:]]
    title = "top-1 % by class" + ("" if shown == known else f", {half} worst and {half} best")
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    for kind in kinds:
        table.add_column(kind, justify="right", no_wrap=True)
    for name in shown:
        shares = [percent(of[kind]["per_class"].get(name)) for kind in kinds]
        table.add_row(as_text(name), *shares)
    return table


def _choose_layers(config: Config, layers: str | None) -> tuple[str, ...]:
    """Return the named layers once each, or all; raise ValueError for an unknown name."""
    known = list(stages(build_encoder(config.encoder, 0, config.data.image_size)))
    chosen = known if layers is None else [name.strip() for name in layers.split(",")]
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ValueError(
            f"--layers {','.join(unknown)}: encoder.name={config.encoder.name} has "
            f"{', '.join(known)}"
        )
    return tuple(dict.fromkeys(chosen))


def _check_ten_crop(config: Config, with_linear: bool) -> None:
    """Raise ValueError if ten crops cannot be cut or nothing would use them."""
    data = data_of_classifiers(config)
    if not with_linear:
        raise ValueError("--ten-crop needs --linear; kNN uses one view of an image")
    if data.test_resize is None or data.test_resize <= data.image_size:
        raise ValueError(
            f"--ten-crop cuts corners of {data.image_size} pixels out of test images whose "
            f"shorter side is data.test_resize = {data.test_resize}: it has to be larger, such as "
            f"data.test_resize={data.image_size * 8 // 7}"
        )


WITHOUT_LABELS = (
    "without labels, `and-dist neighbours {run} IMAGE...` shows what the run takes for alike, "
    "`and-dist report {run}` its neighbourhoods and a map of its features; `and-dist embed` and "
    "`and-dist export` give features and encoder to other programs"
)


def _check_labels(
    opened: OpenedCheckpoint, train: LabelledImages, test: LabelledImages | None
) -> LabelledImages:
    """Return the test images; raise ValueError unless kNN and classifiers can be tested with them.

    Both sets need labels, training images need to show every class of the test images, and the test
    set needs at least as many images as there are classes.
    """
    data, instead = opened.config.data, WITHOUT_LABELS.format(run=opened.run)
    if test is None:
        raise ValueError(
            f"evaluation needs test images: data.test=FOLDER with class folders; {instead}"
        )
    test_source = data.test or data.train
    for key, source, images in (("train", data.train, train), ("test", test_source, test)):
        if images.labels_N is None:
            raise ValueError(
                f"evaluation needs labels, and data.{key}={source} has none: use class "
                f"folders, or a prepared set with labels; {instead}"
            )
    assert train.labels_N is not None
    assert test.labels_N is not None
    unseen = sorted(set(test.labels_N.tolist()) - set(train.labels_N.tolist()))
    if unseen:
        names = ", ".join(test.class_names[label] for label in unseen)
        raise ValueError(
            f"data.test={data.test} has classes of which data.train={data.train} shows no image "
            f"(data.limit = {data.limit}): {names}"
        )
    tested_by = f"data.holdout={data.holdout:g}" if data.test is None else f"data.test={data.test}"
    classes = len(set(train.labels_N.tolist()))
    if len(test.index) < classes:
        raise ValueError(
            f"{tested_by} has {len(test.index)} images for {classes} classes; an "
            f"accuracy needs at least one for each class (data.limit_test = {data.limit_test})"
        )
    return test
