"""Find the nearest training images of a user's own images (`and-dist neighbours RUN`).

Q images of the user, K neighbours, D feature.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from rich.markup import escape
from rich.table import Table

from and_dist.checkpoint.bank_reader import StoredBank, search_bank
from and_dist.checkpoint.reader import (
    OpenedCheckpoint,
    find_images,
    load_encoder,
    open_checkpoint,
    refuse_corrupt,
)
from and_dist.data.datasets import index_named
from and_dist.data.index import LabelledImages
from and_dist.data.unreadable import AllBad
from and_dist.distributed.world import World
from and_dist.evaluation.image_reader import ImageReader
from and_dist.evaluation.picture_sheet import (
    PICTURE,
    Frame,
    Group,
    Layout,
    Picture,
    Words,
    draw_sheet,
)
from and_dist.evaluation.source_pictures import read_thumbnail
from and_dist.runs.console import Display
from and_dist.utils.formatting import as_text
from and_dist.utils.owned_files import IsOurs, check_output, open_new

HEADINGS = "query", "most similar training images"
FRAMES: dict[Frame, str] = {
    "same": "a training image of the query's class",
    "other": "a training image of another class",
}
OF_FOLDER = "The class of a query is the nearest folder of its path that is named like one."
NOT_KNOWN = "Gray frames: no folder of the query is named like a class of the training images."
LONGEST_SIDE = {".webp": 16_383, ".jpg": 65_500, ".jpeg": 65_500, ".png": 65_500}
"""The most pixels in height that a picture of each format may have."""
QUALITY = 90
"""The quality of a sheet as JPEG or WebP, in which letters stay sharp."""


@dataclass(frozen=True)
class NeighbourQuery:
    """Hold the checked inputs of one query."""

    opened: OpenedCheckpoint
    paths: tuple[Path, ...]
    images: LabelledImages
    count: int
    """The number of neighbours of each image."""


@dataclass(frozen=True)
class Neighbour:
    """Describe one training image that is a neighbour."""

    row: int
    name: str
    label: str | None
    similarity: float
    """The cosine of the two features."""


@dataclass(frozen=True)
class Found:
    """Hold the neighbours of one of the user's images, nearest first."""

    row: int
    name: str
    label: str | None
    """The nearest folder of the image's path that is named like a class of the training images."""
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class QueryResult:
    """Hold the neighbours of all images, and where the training images are."""

    query: NeighbourQuery
    found: tuple[Found, ...]
    known: ImageReader | None
    """A reader of the training images, or None if they are missing or have changed."""


def check_sheet(sheet: Path | None, images: int, count: int, may_replace: IsOurs) -> None:
    """Raise ValueError unless a picture of so many images can be written; None passes."""
    if sheet is None:
        return
    if sheet.suffix.lower() not in LONGEST_SIDE:
        raise ValueError(f"--sheet {sheet}: the name has to end in .png, .jpg or .webp")
    height = Layout(images, count, explanations=len(FRAMES) + 2).size[1]
    if height > (most := LONGEST_SIDE[sheet.suffix.lower()]):
        raise ValueError(
            f"--sheet {sheet}: {images} images with {count} neighbours each make a picture of "
            f"{height:,} pixels in height, and {sheet.suffix} has at most {most:,}; give fewer "
            "images, or a smaller --count"
        )
    if not sheet.absolute().parent.is_dir():
        raise ValueError(f"--sheet {sheet}: there is no folder {sheet.parent}")
    check_output(sheet, "--sheet", may_replace)


def plan_query(
    run: Path, checkpoint: str | None, paths: Sequence[Path], count: int
) -> NeighbourQuery:
    """Check the inputs of a query and return them.

    Raise ValueError for a checkpoint, image file or number of neighbours that is impossible.
    """
    opened = open_checkpoint(run, checkpoint)
    if not 1 <= count <= opened.num_rows:
        raise ValueError(
            f"--count {count}: {run} was trained on {opened.num_rows} images; choose "
            f"1 to {opened.num_rows}"
        )
    return NeighbourQuery(
        opened, tuple(paths), index_named(paths, opened.config.data.decode_mb), count
    )


def find_neighbours(query: NeighbourQuery, world: World, display: Display) -> QueryResult:
    """Find the nearest rows of the bank for each image, as `evaluate --knn` does.

    Raise ValueError if the checkpoint is corrupt or an image cannot be decoded.
    """
    opened, data = query.opened, query.opened.config.data
    refuse_corrupt(opened, world)
    images = find_images(opened, "names", display.say)
    known = None if images is None else ImageReader(images, data, world.device)
    own = ImageReader(query.images, data, world.device)
    wanted = range(len(query.images.index))
    try:
        rows, features_QD = own.features(wanted, load_encoder(opened, world))
    except AllBad:
        rows, features_QD = [], torch.empty(0)
    if unread := set(wanted) - set(rows):
        raise ValueError(f"{query.paths[min(unread)]} cannot be decoded")
    nearest = search_bank(StoredBank(opened.checkpoint), features_QD, query.count)
    found = [
        Found(
            row,
            str(query.paths[row]),
            class_by_folder(query.paths[row], images),
            tuple(
                describe_neighbour(known, *pair) for pair in zip(neighbours, cosines, strict=True)
            ),
        )
        for row, neighbours, cosines in zip(
            rows, nearest.rows_QK.tolist(), nearest.similarity_QK.tolist(), strict=True
        )
    ]
    return QueryResult(query, tuple(found), known)


def class_by_folder(path: Path, images: LabelledImages | None) -> str | None:
    """Return the nearest folder of an image's path that is named like a class, if there is one."""
    if images is None or images.labels_N is None:
        return None
    folders = [*path.parents, Path(os.path.abspath(path)).parent]
    return next((f.name for f in folders if f.name in images.class_names), None)


def describe_neighbour(known: ImageReader | None, row: int, similarity: float) -> Neighbour:
    """Return a neighbour with its name and class, or with its row number as the only name."""
    if known is None:
        return Neighbour(row, f"row {row}", None, similarity)
    return Neighbour(row, known.name_of(row), known.class_of(row), similarity)


def as_table(result: QueryResult) -> Table:
    """Return a table with a line for each pair of an image and a neighbour."""
    table = Table(title="nearest training images", title_justify="left")
    for column in ("image", "cosine", "class", "neighbour"):
        table.add_column(column, justify="right" if column == "cosine" else "left")
    for one in result.found:
        for at, neighbour in enumerate(one.neighbours):
            table.add_row(
                escape(as_text(one.name)) if at == 0 else "",
                f"{neighbour.similarity:.3f}",
                escape(as_text(neighbour.label or "-")),
                escape(as_text(neighbour.name)),
                end_section=at + 1 == len(one.neighbours),
            )
    return table


def as_json(result: QueryResult) -> str:
    """Return the result as JSON text.

    Its form is {"run", "checkpoint", "images": [{"image", "neighbours": [{"row", "name", ...}]}]}.
    """
    opened = result.query.opened
    images = [
        {"image": one.name, "neighbours": [vars(neighbour) for neighbour in one.neighbours]}
        for one in result.found
    ]
    about = {"run": opened.config.name, "checkpoint": opened.checkpoint.name, "images": images}
    return json.dumps(about, indent=1)


def draw_query(result: QueryResult) -> Image.Image:
    """Draw a sheet with each image and its neighbours, whose frames tell whether classes agree.

    Raise ValueError if the training images are missing or have changed.
    """
    if result.known is None:
        raise ValueError("--sheet shows the training images, and they are missing or have changed")
    groups = [_as_group(result.query.images, result.known.images, one) for one in result.found]
    labels = [one.label for one in result.found]
    notes = [OF_FOLDER] if any(labels) else []
    if any(labels) and not all(labels):
        notes.append(NOT_KNOWN)
    return draw_sheet(groups, Words(*HEADINGS, FRAMES if any(labels) else {}, tuple(notes)))


def save_sheet(sheet: Image.Image, path: Path, may_replace: IsOurs) -> None:
    """Write the picture in the format that the file's name ends in."""
    with open_new(path, may_replace) as file:
        sheet.save(file, Image.registered_extensions()[path.suffix.lower()], quality=QUALITY)


def _as_group(own: LabelledImages, known: LabelledImages, one: Found) -> Group:
    """Return an image of the user's and its neighbours as a sheet shows them."""
    others = []
    for neighbour in one.neighbours:
        frame: Frame = "plain"
        if one.label is not None:
            frame = "same" if neighbour.label == one.label else "other"
        image = read_thumbnail(known.index, neighbour.row, PICTURE)
        name = neighbour.label or neighbour.name
        others.append(Picture(image, f"similarity {neighbour.similarity:.3f}", name, frame))
    image = read_thumbnail(own.index, one.row, PICTURE)
    note = "" if one.label is None else f"class {one.label}"
    return Group(Picture(image, note, Path(one.name).name), tuple(others))
