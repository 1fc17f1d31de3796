"""Images of a user's own, seen by a trained network: their nearest training images, their features.

Q such images, K neighbours, D feature.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from and_dist.checkpoint.bank_reader import StoredBank, search_bank
from and_dist.checkpoint.reader import (
    Trained,
    find_images,
    load_encoder,
    open_trained,
    refuse_damaged,
)
from and_dist.data.datasets import index_named
from and_dist.data.index import LabelledImages
from and_dist.data.loader import FeatureLoader
from and_dist.data.unreadable import AllBad, BadImages
from and_dist.distributed.collectives import failing_together, gather_objects
from and_dist.distributed.world import World
from and_dist.evaluation.features import extract_features
from and_dist.evaluation.image_reader import U8, Album, short_name
from and_dist.method.memory_bank import all_shards, shard_range
from and_dist.runs.console import Display
from and_dist.utils.formatting import as_text
from and_dist.utils.owned_files import (
    IsOurs,
    NewFile,
    check_output,
    open_new,
    open_shared,
    write_file,
)

IMAGES_PER_BATCH = 256
CELL, CAPTION, MARGIN = 128, 34, 4
"""Sides of a picture of the sheet, of the words below, and what lies between, in pixels."""
LETTERS = 20
Policy = Literal["stop", "skip"]


@dataclass(frozen=True)
class Lookup:
    """What is asked of which run, all of it checked."""

    trained: Trained
    paths: tuple[Path, ...]
    images: LabelledImages
    count: int


@dataclass(frozen=True)
class Neighbour:
    row: int
    name: str
    label: str | None
    similarity: float


@dataclass(frozen=True)
class Found:
    """One image's neighbours, nearest first."""

    row: int
    name: str
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class Answer:
    lookup: Lookup
    found: tuple[Found, ...]
    own: Album
    known: Album | None
    """The training images, where they can still be had."""


def check_sheet(sheet: Path | None, may_replace: IsOurs) -> None:
    """ValueError for a file that no picture can be written to."""
    if sheet is None:
        return
    if sheet.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"--sheet {sheet}: right are names that end in .png, .jpg or .webp")
    if not sheet.absolute().parent.is_dir():
        raise ValueError(f"--sheet {sheet}: there is no folder {sheet.parent}")
    check_output(sheet, "--sheet", may_replace)


def check_features_file(out: Path, may_replace: IsOurs) -> None:
    if out.suffix != ".npy":
        raise ValueError(f"--out {out}: right is a name that ends in .npy")
    for file in (out, names_file(out)):
        check_output(file, "--out", may_replace)


def plan_lookup(run: Path, checkpoint: str | None, paths: Sequence[Path], count: int) -> Lookup:
    """ValueError for what cannot be."""
    trained = open_trained(run, checkpoint)
    if not 1 <= count <= trained.num_rows:
        raise ValueError(
            f"--count {count}: {run} was trained on {trained.num_rows} images; right are "
            f"1 to {trained.num_rows}"
        )
    return Lookup(trained, tuple(paths), index_named(paths), count)


def find_neighbours(lookup: Lookup, world: World, display: Display) -> Answer:
    """By the bank's rows, as evaluate --knn does."""
    trained, data = lookup.trained, lookup.trained.config.data
    refuse_damaged(trained, world)
    images = find_images(trained, "names", display.say)
    known = None if images is None else Album(images, data, world.device)
    own = Album(lookup.images, data, world.device)
    wanted = range(len(lookup.images.index))
    try:
        rows, features_QD = own.features(wanted, load_encoder(trained, world))
    except AllBad:
        rows, features_QD = [], torch.empty(0)
    if unread := set(wanted) - set(rows):
        raise ValueError(f"{lookup.paths[min(unread)]} cannot be decoded")
    nearest = search_bank(StoredBank(trained.checkpoint), features_QD, lookup.count)
    found = [
        Found(
            row,
            str(lookup.paths[row]),
            tuple(_neighbour(known, *pair) for pair in zip(neighbours, cosines, strict=True)),
        )
        for row, neighbours, cosines in zip(
            rows, nearest.rows_QK.tolist(), nearest.similarity_QK.tolist(), strict=True
        )
    ]
    return Answer(lookup, tuple(found), own, known)


def _neighbour(known: Album | None, row: int, similarity: float) -> Neighbour:
    if known is None:
        return Neighbour(row, f"row {row}", None, similarity)
    return Neighbour(row, known.name_of(row), known.class_of(row), similarity)


def as_table(answer: Answer) -> Table:
    table = Table(title="nearest training images", title_justify="left")
    for column in ("image", "cosine", "class", "neighbour"):
        table.add_column(column, justify="right" if column == "cosine" else "left")
    for one in answer.found:
        for at, neighbour in enumerate(one.neighbours):
            table.add_row(
                escape(as_text(one.name)) if at == 0 else "",
                f"{neighbour.similarity:.3f}",
                escape(as_text(neighbour.label or "-")),
                escape(as_text(neighbour.name)),
                end_section=at + 1 == len(one.neighbours),
            )
    return table


def as_json(answer: Answer) -> str:
    """{"run", "checkpoint", "images": [{"image", "neighbours": [{"row", "name", ...}]}]}"""
    trained = answer.lookup.trained
    images = [
        {"image": one.name, "neighbours": [vars(neighbour) for neighbour in one.neighbours]}
        for one in answer.found
    ]
    about = {"run": trained.config.name, "checkpoint": trained.checkpoint.name, "images": images}
    return json.dumps(about, indent=1)


def draw_sheet(answer: Answer) -> Image.Image:
    """A line for each image: itself, then its neighbours with class and cosine."""
    if answer.known is None:
        raise ValueError("--sheet shows the training images, and they cannot be had any more")
    own = answer.own.load(one.row for one in answer.found)
    near = answer.known.load(n.row for one in answer.found for n in one.neighbours)
    size = (CELL * (1 + answer.lookup.count), (CELL + CAPTION) * len(answer.found))
    sheet = Image.new("RGB", size, "white")
    for line, one in enumerate(answer.found):
        own_name = as_text(Path(one.name).name)[:LETTERS]
        _paste(sheet, line, 0, answer.own.pixels(own[one.row]), own_name)
        for column, neighbour in enumerate(one.neighbours, 1):
            if neighbour.row in near:
                pixels = answer.known.pixels(near[neighbour.row])
                name = as_text(neighbour.label or neighbour.name)[:LETTERS]
                caption = f"{name}\n{neighbour.similarity:.3f}"
                _paste(sheet, line, column, pixels, caption)
    return sheet


def save_sheet(sheet: Image.Image, path: Path, may_replace: IsOurs) -> None:
    """Write the picture in the format that its name asks for."""
    with open_new(path, may_replace) as file:
        sheet.save(file, Image.registered_extensions()[path.suffix.lower()])


def _paste(sheet: Image.Image, line: int, column: int, pixels: U8, caption: str) -> None:
    left, top = CELL * column, (CELL + CAPTION) * line
    inner = CELL - 2 * MARGIN
    picture = Image.fromarray(pixels).resize((inner, inner), Image.Resampling.BICUBIC)
    sheet.paste(picture, (left + MARGIN, top + MARGIN))
    place = (left + MARGIN, top + CELL - MARGIN + 2)
    ImageDraw.Draw(sheet).multiline_text(place, caption, fill="black", spacing=2)


class FeaturesFile:
    """An .npy file that all ranks write to; it has its name once it is whole."""

    def __init__(self, path: Path, count: int, dim: int) -> None:
        self.path = path
        self._bytes_per_row = 4 * dim
        buffer = io.BytesIO()
        about = {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}
        np.lib.format.write_array_header_1_0(buffer, about)
        self._header = buffer.getvalue()
        self._new: NewFile | None = None

    @contextmanager
    def begin(self, world: World, may_replace: IsOurs) -> Iterator[Path]:
        """Begin the file, on every rank, and give the name that it has until it is whole."""
        name = Path()
        with failing_together(world, f"making {self.path}"):
            if world.is_coordinator:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._new = NewFile(self.path, may_replace)
                self._new.file.write(self._header)
                self._new.file.flush()
                name = self._new.temporary
        try:
            yield gather_objects(world, name)[0]
        except BaseException:
            if self._new is not None:
                self._new.discard()
            raise

    def write(self, temporary: Path, start: int, features_MD: Tensor) -> None:
        """Not by a map into memory, which ends the process where a disk is full."""
        with open_shared(temporary) as file:
            file.seek(len(self._header) + start * self._bytes_per_row)
            file.write(features_MD.cpu().numpy().astype("<f4").data)

    def finish(self) -> None:
        """Give the file its name, on the coordinator, once all have written."""
        assert self._new is not None
        self._new.publish()


def embed(
    trained: Trained,
    images: LabelledImages,
    policy: Policy,
    out: Path,
    may_replace: IsOurs,
    world: World,
    display: Display,
) -> None:
    """Features [N, D] of all images into an .npy file, and their names beside it; under `skip`
    zeros for what cannot be decoded. Every rank writes its own rows."""
    refuse_damaged(trained, world)
    config, count = trained.config, len(images.index)
    dim = config.encoder.feature_dim
    bad = BadImages(images.index, policy, display.say)
    loader = FeatureLoader(images.index, config.data, IMAGES_PER_BATCH, world.device, bad)
    start, stop = shard_range(count, world.rank, world.size)
    (_, longest), *_ = all_shards(count, world.size)
    file = FeaturesFile(out, count, dim)
    with file.begin(world, may_replace) as temporary:
        with display.phase("features") as advance:
            features_MD = extract_features(
                load_encoder(trained, world), loader, start, stop, dim, longest, advance
            )
        with failing_together(world, f"writing {out}"):
            file.write(temporary, start, features_MD)
        reasons = {
            row: why for found in gather_objects(world, bad.reasons) for row, why in found.items()
        }
        with failing_together(world, f"writing {names_file(out)}"):
            if world.is_coordinator:
                about = _describe_names(trained, images, reasons)
                write_file(names_file(out), json.dumps(about, indent=0) + "\n", may_replace)
                file.finish()
    zeros = f", {len(reasons)} of zeros" if reasons else ""
    display.say(f"{count:,} features in {out}{zeros}, names in {names_file(out)}")


def names_file(out: Path) -> Path:
    return out.with_suffix(".json")


def _describe_names(
    trained: Trained, images: LabelledImages, reasons: dict[int, str]
) -> dict[str, Any]:
    return {
        "run": trained.config.name,
        "checkpoint": trained.checkpoint.name,
        "unreadable": {short_name(images.index, row): why for row, why in sorted(reasons.items())},
        "left_out": images.left_out,
        "names": [short_name(images.index, row) for row in range(len(images.index))],
    }
