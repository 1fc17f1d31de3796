"""What checkpoints and images add to a run's figures. N all rows, Q some rows, D feature."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from and_dist.checkpoint.bank_reader import StoredBank, search_bank
from and_dist.checkpoint.reader import OpenedCheckpoint, find_images, load_encoder
from and_dist.checkpoint.storage import find_corruption
from and_dist.config.schema import Config
from and_dist.data.datasets import load_test
from and_dist.data.index import LabelledImages
from and_dist.distributed.world import World
from and_dist.evaluation.image_reader import ImageReader, as_uri, as_uris
from and_dist.report.grad_cam import attend, overlay
from and_dist.report.misclassified import Mistake, Mistakes, find_mistakes
from and_dist.report.neighbourhood_examples import (
    RoundTable,
    anchors_per_band,
    checkpoints_of,
    read_round,
)
from and_dist.report.projection import begin_projections
from and_dist.utils.formatting import as_text
from and_dist.utils.progress import Phase

MAP_POINTS = 1200
TEST_IMAGES, TEST_PIXELS = 512, 256 * 224 * 224
"""At most so many are looked at for mistakes."""
ATTENDED = (("low", 3), ("middle", 3), ("high", 2))
"""Images whose attention is shown, by band of entropy."""
OVERLAY_SIDE = 112


@dataclass(frozen=True)
class Attended:
    """One image through the rounds."""

    row: int
    neighbour: int
    maps: tuple[tuple[str, str, float], ...]
    """(after what, data URI, cosine with the neighbour's feature)."""


@dataclass(frozen=True)
class MapPoints:
    rows: tuple[int, ...]
    projections: dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Findings:
    checkpoint: str
    notes: tuple[str, ...]
    """What cannot be shown, and why."""
    rounds: tuple[RoundTable, ...] = ()
    map: MapPoints | None = None
    mistakes: Mistakes | None = None
    attended: tuple[Attended, ...] = ()
    pictures: dict[str, str] = field(default_factory=dict)
    """`r12` for row 12 of the training images, `t12` for one of the test images -> data URI."""
    names: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """As `pictures` -> name and class."""
    class_names: tuple[str, ...] = ()


class _Search:
    """Of one run; collects what a page needs of it."""

    def __init__(self, run: Path, config: Config, world: World, phase: Phase) -> None:
        self.config, self.world, self.phase = config, world, phase
        self.notes: list[str] = []
        self._checked: dict[str, bool] = {}
        self._by_round = checkpoints_of(run, config, self.notes.append)
        self.opened = self._newest_whole()
        self.bank = StoredBank(self.opened.checkpoint)
        train, test = self._load_images()
        self.train = None if train is None else ImageReader(train, self.config.data, world.device)
        self.test = None if test is None else ImageReader(test, self.config.data, world.device)
        labels_N = None if train is None else train.labels_N
        self.labels_N = None if labels_N is None else torch.tensor(labels_N)

    def _newest_whole(self) -> OpenedCheckpoint:
        found = next(filter(self._is_whole, reversed(self._by_round)), None)
        if found is None:
            raise ValueError(f"no checkpoint can be shown: {'; '.join(self.notes)}")
        return found

    def _is_whole(self, opened: OpenedCheckpoint) -> bool:
        """What is not is noted."""
        name = opened.checkpoint.name
        if name not in self._checked:
            damage = find_corruption(opened.checkpoint, self.world)
            self.notes += [damage] if damage else []
            self._checked[name] = not damage
        return self._checked[name]

    @property
    def checkpoints(self) -> list[OpenedCheckpoint]:
        """The last of every round, where it is whole."""
        return [opened for opened in self._by_round if self._is_whole(opened)]

    def _load_images(self) -> tuple[LabelledImages | None, LabelledImages | None]:
        """Without test images where those cannot be had."""
        train = find_images(self.opened, "pictures", self.notes.append)
        if train is None:
            return None, None
        if train.labels_N is None:
            self.notes.append("no labels: nothing is marked as right or wrong")
        try:
            return train, load_test(self.config.data, train)
        except (ValueError, OSError) as error:
            self.notes.append(f"no mistakes: {error}")
            return train, None

    @property
    def class_names(self) -> tuple[str, ...]:
        return () if self.train is None else tuple(map(as_text, self.train.images.class_names))

    def rounds(self) -> tuple[RoundTable, ...]:
        per_band = anchors_per_band(self.config, self.config.last_round)
        found = []
        with self.phase("neighbourhoods") as advance:
            for opened in self.checkpoints:
                table = read_round(opened, self.labels_N, per_band, self.world)
                found += [] if table is None else [table]
                advance(1 / len(self.checkpoints))
        return tuple(found)

    def begin_map(self) -> Callable[[], MapPoints]:
        """It takes a while, beside everything else; gives what waits for it."""
        count = min(MAP_POINTS, self.bank.num_rows)
        drawn = np.random.default_rng(0).choice(self.bank.num_rows, count, replace=False)
        rows_Q = torch.from_numpy(np.sort(drawn))
        finish = begin_projections(self.bank.take(rows_Q), self.notes.append)

        def wait() -> MapPoints:
            with self.phase("map of the features"):
                projections = {name: points.tolist() for name, points in finish().items()}
            pairs = {name: [(x, y) for x, y in points] for name, points in projections.items()}
            return MapPoints(tuple(rows_Q.tolist()), pairs)

        return wait

    def mistakes(self) -> Mistakes | None:
        """None where there are no labelled test images."""
        if self.test is None or self.labels_N is None or self.test.images.labels_N is None:
            return None
        count = len(self.test.images.index)
        most = max(1, min(count, TEST_IMAGES, TEST_PIXELS // self.config.data.image_size**2))
        rows = np.unique(np.linspace(0, count - 1, most).round()).astype(int)
        with self.phase("mistakes"):
            encoder = load_encoder(self.opened, self.world)
            found, queries_QD = self.test.features(rows.tolist(), encoder)
            labels_Q = torch.tensor(self.test.images.labels_N[found])
            return find_mistakes(
                found, queries_QD, labels_Q, self.labels_N, self.bank, self.config.evaluation
            )

    def attended(self, rounds: Sequence[RoundTable]) -> tuple[Attended, ...]:
        """The same images and neighbours through all rounds."""
        if self.train is None:
            return ()
        pairs = self._pairs(rounds)
        images = self.train.load(row for pair in pairs for row in pair)
        pairs = [pair for pair in pairs if set(pair) <= images.keys()]
        if not pairs:
            return ()
        images_BCHW, others_BCHW = (
            torch.stack([images[pair[side]] for pair in pairs]) for side in (0, 1)
        )
        maps: list[list[tuple[str, str, float]]] = [[] for _ in pairs]
        with self.phase("attention") as advance:
            trained_ones = [one for one in self.checkpoints if self._after_what(one)]
            for opened in trained_ones:
                encoder = load_encoder(opened, self.world)
                with torch.no_grad():
                    targets_BD = encoder(others_BCHW)
                maps_BHW, cosines_B = attend(encoder, images_BCHW, targets_BD)
                when = self._after_what(opened)
                for at, of_pair in enumerate(maps):
                    shown = self._overlay(images_BCHW[at], maps_BHW[at])
                    of_pair.append((when, shown, float(cosines_B[at])))
                del encoder  # before the next one comes
                advance(1 / len(trained_ones))
        return tuple(
            Attended(*pair, tuple(of_pair)) for pair, of_pair in zip(pairs, maps, strict=True)
        )

    def _after_what(self, opened: OpenedCheckpoint) -> str:
        """`round 1`, or how far into it; nothing for a round that has only begun."""
        at = opened.state["progress"]
        round_index, done = int(at["round_index"]), int(at["epochs"])
        epochs = self.config.epochs_of(round_index)
        if done == epochs:
            return f"round {round_index}"
        return f"{done} of {epochs} epochs of round {round_index}" if done else ""

    def _overlay(self, image_CHW: Tensor, map_HW: Tensor) -> str:
        assert self.train is not None
        size = (OVERLAY_SIDE, OVERLAY_SIDE)
        enlarged = Image.fromarray(self.train.pixels(image_CHW)).resize(
            size, Image.Resampling.BICUBIC
        )
        map_11HW = map_HW[None, None]
        smooth_HW = torch.nn.functional.interpolate(map_11HW, size, mode="bilinear")[0, 0]
        return as_uri(overlay(np.asarray(enlarged), smooth_HW))

    def _pairs(self, rounds: Sequence[RoundTable]) -> list[tuple[int, int]]:
        """Anchors of the last round and their neighbours, or any rows and their nearest."""
        if rounds:
            examples = rounds[-1].examples
            chosen = [
                example
                for band, count in ATTENDED
                for example in [e for e in examples if e.band == band][:count]
            ]
            return list(dict.fromkeys((e.row, e.neighbours[0]) for e in chosen))
        count = min(sum(count for _, count in ATTENDED), self.bank.num_rows)
        rows_Q = torch.linspace(0, self.bank.num_rows - 1, count).long()
        nearest = search_bank(self.bank, self.bank.take(rows_Q), 1, rows_Q)
        return list(zip(rows_Q.tolist(), nearest.rows_QK[:, 0].tolist(), strict=True))

    def pictures(
        self, train_rows: Iterable[int], test_rows: Iterable[int]
    ) -> tuple[dict[str, str], dict[str, tuple[str, str | None]]]:
        """As Findings.pictures and Findings.names."""
        images: dict[str, Image.Image] = {}
        names: dict[str, tuple[str, str | None]] = {}
        with self.phase("pictures") as advance:
            for letter, reader, rows in (
                ("r", self.train, train_rows),
                ("t", self.test, test_rows),
            ):
                if reader is None:
                    continue
                wanted = sorted(set(rows))
                names |= {
                    f"{letter}{row}": _as_texts(reader.name_of(row), reader.class_of(row))
                    for row in wanted
                }
                for row, image in reader.thumbnails(wanted).items():
                    images[f"{letter}{row}"] = image
                advance(0.5)
        return as_uris(images), names


def _as_texts(name: str, label: str | None) -> tuple[str, str | None]:
    return as_text(name), None if label is None else as_text(label)


def gather_findings(run: Path, config: Config, world: World, phase: Phase) -> Findings:
    """All that needs torch. ValueError where no checkpoint is whole."""
    search = _Search(run, config, world, phase)
    wait_for_map = search.begin_map()
    rounds = search.rounds()
    attended = search.attended(rounds)
    mistakes = search.mistakes()
    points = wait_for_map()  # from here on the checkpoints may go
    train_rows, test_rows = _rows_of(rounds, points, mistakes, attended)
    pictures, names = search.pictures(train_rows, test_rows)
    return Findings(
        search.opened.checkpoint.name,
        tuple(search.notes),
        rounds,
        points,
        mistakes,
        attended,
        pictures,
        names,
        search.class_names,
    )


def _rows_of(
    rounds: Sequence[RoundTable],
    points: MapPoints,
    mistakes: Mistakes | None,
    attended: Sequence[Attended],
) -> tuple[set[int], set[int]]:
    """Of the training and of the test images, all that a page shows."""
    train, test = set(points.rows), set()
    for table in rounds:
        train |= {row for row, _ in table.hubs}
        train |= {row for example in table.examples for row in (example.row, *example.neighbours)}
    for one in attended:
        train |= {one.row, one.neighbour}
    wrong: tuple[Mistake, ...] = (*mistakes.nearest, *mistakes.farthest) if mistakes else ()
    for mistake in wrong:
        test.add(mistake.row)
        train |= set(mistake.nearest)
    return train, test
