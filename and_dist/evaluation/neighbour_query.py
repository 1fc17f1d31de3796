"""Find the nearest training images of a user's own images (`and-dist neighbours RUN`).

Q images of the user, K neighbours, D feature.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
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
from and_dist.evaluation.image_reader import U8, ImageReader
from and_dist.runs.console import Display
from and_dist.utils.formatting import as_text
from and_dist.utils.owned_files import IsOurs, check_output, open_new

CELL, CAPTION, MARGIN = 128, 34, 4
"""The side of a cell of the sheet, the height of its caption and the margin of its picture, in
pixels."""
LETTERS = 20
"""The largest number of letters of a name in a caption."""


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
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class QueryResult:
    """Hold the neighbours of all images, and readers for their pictures."""

    query: NeighbourQuery
    found: tuple[Found, ...]
    own: ImageReader
    known: ImageReader | None
    """A reader of the training images, or None if they are missing or have changed."""


def check_sheet(sheet: Path | None, may_replace: IsOurs) -> None:
    """Raise ValueError unless a picture can be written to the file; None passes."""
    if sheet is None:
        return
    if sheet.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"--sheet {sheet}: the name has to end in .png, .jpg or .webp")
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
    return NeighbourQuery(opened, tuple(paths), index_named(paths), count)


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
            tuple(
                describe_neighbour(known, *pair) for pair in zip(neighbours, cosines, strict=True)
            ),
        )
        for row, neighbours, cosines in zip(
            rows, nearest.rows_QK.tolist(), nearest.similarity_QK.tolist(), strict=True
        )
    ]
    return QueryResult(query, tuple(found), own, known)


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


def draw_sheet(result: QueryResult) -> Image.Image:
    """Draw one line for each image: the image, then its neighbours with class and cosine.

    Raise ValueError if the training images are missing or have changed.
    """
    if result.known is None:
        raise ValueError("--sheet shows the training images, and they are missing or have changed")
    own = result.own.load(one.row for one in result.found)
    near = result.known.load(n.row for one in result.found for n in one.neighbours)
    size = (CELL * (1 + result.query.count), (CELL + CAPTION) * len(result.found))
    sheet = Image.new("RGB", size, "white")
    for line, one in enumerate(result.found):
        own_name = as_text(Path(one.name).name)[:LETTERS]
        _paste(sheet, line, 0, result.own.pixels(own[one.row]), own_name)
        for column, neighbour in enumerate(one.neighbours, 1):
            if neighbour.row in near:
                pixels = result.known.pixels(near[neighbour.row])
                name = as_text(neighbour.label or neighbour.name)[:LETTERS]
                caption = f"{name}\n{neighbour.similarity:.3f}"
                _paste(sheet, line, column, pixels, caption)
    return sheet


def save_sheet(sheet: Image.Image, path: Path, may_replace: IsOurs) -> None:
    """Write the picture in the format that the file's name ends in."""
    with open_new(path, may_replace) as file:
        sheet.save(file, Image.registered_extensions()[path.suffix.lower()])


def _paste(sheet: Image.Image, line: int, column: int, pixels: U8, caption: str) -> None:
    """Draw one picture with its caption into a cell of the sheet."""
    left, top = CELL * column, (CELL + CAPTION) * line
    inner = CELL - 2 * MARGIN
    picture = Image.fromarray(pixels).resize((inner, inner), Image.Resampling.BICUBIC)
    sheet.paste(picture, (left + MARGIN, top + MARGIN))
    place = (left + MARGIN, top + CELL - MARGIN + 2)
    ImageDraw.Draw(sheet).multiline_text(place, caption, fill="black", spacing=2)
