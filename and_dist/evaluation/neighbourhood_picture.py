"""Draw the neighbourhoods that a discovery found, for the trackers of a run to show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from and_dist.data.index import ImageIndex, LabelledImages
from and_dist.evaluation.image_reader import short_name
from and_dist.evaluation.picture_sheet import PICTURE, Frame, Group, Picture, Words, draw_sheet
from and_dist.evaluation.source_pictures import read_thumbnail
from and_dist.method.neighbour_table import Neighbourhoods
from and_dist.runs.round_pictures import SOFTWARE, is_picture, picture_path
from and_dist.utils.owned_files import open_new

MOST_ANCHORS = 8
MOST_NEIGHBOURS = 7
"""The most neighbours of an anchor that are drawn."""
MOST_PIXELS = 50_000_000
"""The most pixels that are decoded for a picture, which takes about a second on one core."""
SHRUNK = 10
"""How many times as fast the pixels of a JPEG are, which its decoder shrinks."""
WHOLE = (".png", ".bmp", ".tif", ".tiff", ".webp")
"""Ends of the names of files whose decoders shrink nothing; packs hold JPEGs or small images."""
FRAMES: dict[Frame, str] = {
    "same": "a neighbour of the anchor's class",
    "other": "a neighbour of another class",
}


def write_neighbourhoods(
    found: Neighbourhoods, images: LabelledImages, run: Path, round_index: int
) -> None:
    """Write RUN/neighbourhoods/round-NN.png, unless the round has no anchors."""
    if len(found.anchors_A) == 0:
        return
    path = picture_path(run, round_index)
    path.parent.mkdir(exist_ok=True)
    about = PngInfo()
    about.add_text("Software", SOFTWARE)
    sheet = draw_neighbourhoods(found, images, round_index)
    with open_new(path, is_picture) as file:
        sheet.save(file, "PNG", pnginfo=about)


def draw_neighbourhoods(
    found: Neighbourhoods, images: LabelledImages, round_index: int
) -> Image.Image:
    """Draw the anchors of lowest entropy with their neighbours, and frames if there are labels."""
    groups = [
        Group(
            _as_picture(images, anchor, f"entropy {found.entropy_N[anchor].item():.3f}"),
            tuple(_as_picture(images, row, "", anchor) for row in neighbours),
        )
        for anchor, *neighbours in choose_rows(found, images.index)
    ]
    note = f"Round {round_index}: the anchors of lowest entropy, of {len(found.anchors_A):,}."
    frames = {} if images.labels_N is None else FRAMES
    return draw_sheet(groups, Words("anchor", "its nearest neighbours", frames, (note,)))


def choose_rows(found: Neighbourhoods, index: ImageIndex) -> list[list[int]]:
    """Return the rows of anchors and their neighbours, fewer where the images are very large."""
    anchors_A = found.anchors_A[:MOST_ANCHORS].cpu()
    neighbours_AK = found.neighbours_NK.cpu()[anchors_A, :MOST_NEIGHBOURS]
    chosen: list[list[int]] = []
    left = MOST_PIXELS
    for rows in torch.cat([anchors_A[:, None], neighbours_AK], dim=1).tolist():
        while not chosen and len(rows) > 2 and _pixels_to_decode(index, rows) > left:
            rows.pop()
        left -= _pixels_to_decode(index, rows)
        if chosen and left < 0:
            break
        chosen.append(rows)
    return chosen


def _pixels_to_decode(index: ImageIndex, rows: Sequence[int]) -> int:
    """Return how many pixels are decoded to draw some rows, those of JPEGs as fewer."""
    pixels = 0
    for row in rows:
        is_shrunk = not short_name(index, row).lower().endswith(WHOLE)
        of_image = int(index.heights_N[row]) * int(index.widths_N[row])
        pixels += of_image // SHRUNK if is_shrunk else of_image
    return pixels


def _as_picture(images: LabelledImages, row: int, note: str, anchor: int | None = None) -> Picture:
    """Return a training image with its class, and a frame that compares it with its anchor's."""
    image = read_thumbnail(images.index, row, PICTURE)
    labels_N = images.labels_N
    if labels_N is None:
        return Picture(image, note, short_name(images.index, row))
    frame: Frame = "plain"
    if anchor is not None:
        frame = "same" if labels_N[row] == labels_N[anchor] else "other"
    return Picture(image, note, images.class_names[int(labels_N[row])], frame)
