"""Gather from checkpoints and images all that a page shows beside a run's metrics.

N all rows, Q rows on the map or test images, D feature, B images with their maps.
"""

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
from and_dist.evaluation.image_reader import ImageReader
from and_dist.evaluation.source_pictures import load_seen_part, load_thumbnails
from and_dist.report.grad_cam import attend, overlay
from and_dist.report.misclassified import Mistake, Mistakes, find_mistakes
from and_dist.report.neighbourhood_examples import (
    RoundTable,
    anchors_per_band,
    checkpoints_of,
    read_round,
)
from and_dist.report.projection import begin_projections
from and_dist.report.thumbnails import LARGEST, Thumbnails, as_uri, encode_all
from and_dist.runs.records import say_damage
from and_dist.utils.formatting import as_text
from and_dist.utils.progress import Phase

MAP_POINTS = 1200
"""The largest number of images on the map of the features."""
TEST_IMAGES, TEST_PIXELS = 512, 256 * 224 * 224
"""The largest numbers of test images, and of their pixels, that are searched for mistakes."""
ATTENDED = (("low", 3), ("middle", 3), ("high", 2))
"""The number of images whose attention is shown, by band of entropy."""
OVERLAY_SIDE = 112
"""The side of a picture with its attention, in pixels; small images take somewhat more."""


@dataclass(frozen=True)
class Attended:
    """Hold the attention of one image through the rounds."""

    row: int
    neighbour: int
    maps: tuple[tuple[str, str, float], ...]
    """A (training done, data URI, cosine with the neighbour's feature) for each checkpoint."""


@dataclass(frozen=True)
class MapPoints:
    """Hold the places of some rows in two dimensions."""

    rows: tuple[int, ...]
    projections: dict[str, list[tuple[float, float]]]
    """The name of a method -> one (x, y) for each row."""


@dataclass(frozen=True)
class Findings:
    """Hold all that a page shows from checkpoints and images."""

    checkpoint: str
    """The name of the newest intact checkpoint."""
    notes: tuple[str, ...]
    """Sentences about parts of the page that are missing, and why."""
    rounds: tuple[RoundTable, ...] = ()
    map: MapPoints | None = None
    mistakes: Mistakes | None = None
    attended: tuple[Attended, ...] = ()
    thumbnails: Thumbnails = field(default_factory=Thumbnails)
    """The pictures by key; `r12` is training image 12, `t12` is test image 12."""
    names: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """A key as in `thumbnails` -> (name, class)."""
    class_names: tuple[str, ...] = ()


class _Search:
    """Read the checkpoints and images of one run; collect notes about all that is missing."""

    def __init__(self, run: Path, config: Config, world: World, phase: Phase) -> None:
        """Open the newest intact checkpoint; raise ValueError if there is none."""
        self.config, self.world, self.phase = config, world, phase
        self.notes: list[str] = []
        self._checked: dict[str, bool] = {}
        self._by_round = checkpoints_of(run, config, self._say_and_note)
        self.opened = self._newest_intact()
        self.bank = StoredBank(self.opened.checkpoint)
        train, test = self._load_images()
        self.train = None if train is None else ImageReader(train, self.config.data, world.device)
        self.test = None if test is None else ImageReader(test, self.config.data, world.device)
        labels_N = None if train is None else train.labels_N
        self.labels_N = None if labels_N is None else torch.tensor(labels_N)

    def _newest_intact(self) -> OpenedCheckpoint:
        """Return the newest intact checkpoint; raise ValueError if there is none."""
        found = next(filter(self._is_intact, reversed(self._by_round)), None)
        if found is None:
            raise ValueError(f"no checkpoint can be shown: {'; '.join(self.notes)}")
        return found

    def _is_intact(self, opened: OpenedCheckpoint) -> bool:
        """Return whether a checkpoint's files are as they were written; note any damage once."""
        name = opened.checkpoint.name
        if name not in self._checked:
            damage = find_corruption(opened.checkpoint, self.world)
            if damage:
                self._say_and_note(damage)
            self._checked[name] = not damage
        return self._checked[name]

    def _say_and_note(self, text: str) -> None:
        """Say on the console, once, what the page notes too: it is missing, or damaged."""
        say_damage(text)
        self.notes.append(text)

    @property
    def checkpoints(self) -> list[OpenedCheckpoint]:
        """Return the last checkpoint of each round, without damaged ones."""
        return [opened for opened in self._by_round if self._is_intact(opened)]

    def _load_images(self) -> tuple[LabelledImages | None, LabelledImages | None]:
        """Return training and test images, each None if it cannot be loaded; note why."""
        train = find_images(self.opened, "pictures", self._say_and_note)
        if train is None:
            return None, None
        if train.labels_N is None:
            self.notes.append("no labels: nothing is marked as right or wrong")
        try:
            return train, load_test(self.config.data, train)
        except (ValueError, OSError) as error:
            self._say_and_note(f"no mistakes: {error}")
            return train, None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes as printable text, empty without images."""
        return () if self.train is None else tuple(map(as_text, self.train.images.class_names))

    def rounds(self) -> tuple[RoundTable, ...]:
        """Read the neighbourhoods of every round that discovered some."""
        per_band = anchors_per_band(self.config, self.config.last_round)
        found = []
        with self.phase("neighbourhoods") as advance:
            for opened in self.checkpoints:
                table = read_round(opened, self.labels_N, per_band, self.world)
                found += [] if table is None else [table]
                advance(1 / len(self.checkpoints))
        return tuple(found)

    def begin_map(self) -> Callable[[], MapPoints]:
        """Start to project a sample of the bank; return a function that waits for the map.

        UMAP takes a while and runs in a process of its own beside the other work.
        """
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
        """Find mistakes of kNN by the bank, or return None without labelled test images."""
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
        """Compute the attention of the same images and neighbours by the encoder of each round."""
        if self.train is None:
            return ()
        pairs = self._pairs(rounds)
        images = self.train.load(row for pair in pairs for row in pair)
        parts = {row: part for row, _ in pairs if (part := self._seen_part(row)) is not None}
        pairs = [pair for pair in pairs if set(pair) <= images.keys() and pair[0] in parts]
        if not pairs:
            return ()
        images_BCHW, others_BCHW = (
            torch.stack([images[pair[side]] for pair in pairs]) for side in (0, 1)
        )
        maps: list[list[tuple[str, str, float]]] = [[] for _ in pairs]
        with self.phase("attention") as advance:
            trained = [opened for opened in self.checkpoints if self._progress_of(opened)]
            for opened in trained:
                encoder = load_encoder(opened, self.world)
                with torch.no_grad():
                    targets_BD = encoder(others_BCHW)
                maps_BHW, cosines_B = attend(encoder, images_BCHW, targets_BD)
                when = self._progress_of(opened)
                for at, (row, _) in enumerate(pairs):
                    shown = _overlay(parts[row], maps_BHW[at])
                    maps[at].append((when, shown, float(cosines_B[at])))
                del encoder  # frees its memory before the next one is loaded
                advance(1 / len(trained))
        return tuple(
            Attended(*pair, tuple(of_pair)) for pair, of_pair in zip(pairs, maps, strict=True)
        )

    def _progress_of(self, opened: OpenedCheckpoint) -> str:
        """Return the training done as text, such as `round 1`; "" if no epoch of it is done."""
        at = opened.state["progress"]
        round_index, done = int(at["round_index"]), int(at["epochs"])
        epochs = self.config.epochs_of(round_index)
        if done == epochs:
            return f"round {round_index}"
        return f"{done} of {epochs} epochs of round {round_index}" if done else ""

    def _seen_part(self, row: int) -> Image.Image | None:
        """Return the part of a training image that the encoder sees, None if it is unreadable."""
        assert self.train is not None
        return load_seen_part(self.train.images.index, row, self.config.data, OVERLAY_SIDE)

    def _pairs(self, rounds: Sequence[RoundTable]) -> list[tuple[int, int]]:
        """Return pairs of an anchor of the last round and its nearest neighbour.

        Without a discovery they are evenly spaced rows and their nearest rows of the bank.
        """
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
    ) -> tuple[Thumbnails, dict[str, tuple[str, str | None]]]:
        """Return the thumbnails and names of the given rows, as Findings holds them."""
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
                for row, image in load_thumbnails(reader.images.index, wanted, LARGEST).items():
                    images[f"{letter}{row}"] = image
                advance(0.5)
        return encode_all(images), names


def _overlay(picture: Image.Image, map_HW: Tensor) -> str:
    """Return a picture under the colours of its map, as a data URI."""
    size = picture.height, picture.width
    smooth_HW = torch.nn.functional.interpolate(map_HW[None, None], size, mode="bilinear")[0, 0]
    return as_uri(overlay(np.asarray(picture), smooth_HW))


def _as_texts(name: str, label: str | None) -> tuple[str, str | None]:
    """Return a name and a label as printable text."""
    return as_text(name), None if label is None else as_text(label)


def gather_findings(run: Path, config: Config, world: World, phase: Phase) -> Findings:
    """Gather all that a page shows from checkpoints and images; nothing else of a page needs torch.

    Raise ValueError if no checkpoint is intact.
    """
    search = _Search(run, config, world, phase)
    wait_for_map = search.begin_map()
    rounds = search.rounds()
    attended = search.attended(rounds)
    mistakes = search.mistakes()
    points = wait_for_map()  # from here on no checkpoint is read any more
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
    """Return the rows of all training images and of all test images that a page shows."""
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
