"""Draw sheets of pictures: in each group a leading one, and those that it is compared with.

A frame tells whether a picture is of the leading one's class, by its colour and by its dashes,
since not everybody can tell the colours apart. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

from and_dist.evaluation.lettering import fit

Frame = Literal["plain", "same", "other"]
"""A frame that tells nothing, one of the leading picture's class, and one of another class."""
Place = tuple[int, int]
"""(left, top) in pixels."""
COLOURS: dict[Frame, str] = {"plain": "#b8b8b8", "same": "#0072b2", "other": "#d55e00"}
"""Gray, and blue and vermilion of Okabe and Ito's palette, which the colour-blind tell apart."""
DASHED: tuple[Frame, ...] = ("other",)
DASH, GAP = 8, 6
"""Pixels of a dash, and of the gap behind it."""
PAPER, RULE, FAINT = "#f2f2f2", "#d0d0d0", "#707070"
"""The colours beside a picture that is not square, of lines between groups, and of remarks."""
PICTURE, FRAME = 120, 4
"""The longer side of a picture and the width of its frame, in pixels."""
CELL = PICTURE + 2 * FRAME
BETWEEN, SECTION, BORDER = 12, 36, 16
"""Pixels between two pictures, between a leading picture and the others, and around the sheet."""
TEXT, HEADING = 12, 15
"""The sizes of letters."""
TEXT_HEIGHT, EXPLANATION_HEIGHT, HEADING_HEIGHT = 16, 20, 26
"""The heights of lines of text."""
NAME_LINES = 2
LINE = CELL + 2 + (1 + NAME_LINES) * TEXT_HEIGHT
"""The height of a line of pictures with their captions."""
MOST_COLUMNS = 10
"""The most pictures side by side beside the leading one; others stand in lines below these."""
LEAST_WIDTH = 600
"""The width that the longest line of an explanation needs."""


@dataclass(frozen=True)
class Picture:
    """Hold a picture with its frame, and a note and a name to stand below it."""

    image: Image.Image | None
    """The picture, or None if it cannot be read."""
    note: str
    name: str
    frame: Frame = "plain"


@dataclass(frozen=True)
class Group:
    """Hold a leading picture and those that it is compared with, most similar first."""

    leading: Picture
    others: tuple[Picture, ...]


@dataclass(frozen=True)
class Words:
    """Hold the headings of a sheet and its explanations, one a line."""

    leading: str
    others: str
    frames: dict[Frame, str]
    """Says what each kind of frame that needs an explanation means."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Tell where everything on a sheet stands, in pixels."""

    groups: int
    others: int
    """The largest number of pictures beside a leading one."""
    explanations: int
    """The number of lines of explanation."""

    @property
    def size(self) -> tuple[int, int]:
        """Return (width, height) of the sheet."""
        columns = min(self.others, MOST_COLUMNS)
        width = 2 * BORDER + CELL + SECTION + columns * (CELL + BETWEEN) - BETWEEN
        return max(width, LEAST_WIDTH), self.place_of_group(self.groups)[1] - 2 * BETWEEN + BORDER

    @property
    def headings(self) -> int:
        """Return where the headings begin."""
        gap = BETWEEN if self.explanations else 0
        return BORDER + self.explanations * EXPLANATION_HEIGHT + gap

    def place_of_group(self, group: int) -> Place:
        """Return where the leading picture of a group stands."""
        lines = max(1, -(-self.others // MOST_COLUMNS))
        height = lines * LINE + (lines - 1) * BETWEEN + 2 * BETWEEN
        return BORDER, self.headings + HEADING_HEIGHT + group * height

    def place_of_other(self, group: int, number: int) -> Place:
        """Return where a picture stands that the leading one of a group is compared with."""
        left, top = self.place_of_group(group)
        line, column = divmod(number, MOST_COLUMNS)
        left += CELL + SECTION + column * (CELL + BETWEEN)
        return left, top + line * (LINE + BETWEEN)


def draw_sheet(groups: Sequence[Group], words: Words) -> Image.Image:
    """Draw groups below each other, under headings and explanations."""
    explanations = len(words.frames) + len(words.notes)
    layout = Layout(len(groups), max(len(group.others) for group in groups), explanations)
    sheet = Image.new("RGB", layout.size, "white")
    _explain(sheet, words)
    (left, top), beside = layout.place_of_group(0), layout.place_of_other(0, 0)[0]
    _write(sheet, (left, layout.headings), words.leading, beside - left, HEADING)
    _write(sheet, (beside, layout.headings), words.others, sheet.width - beside, HEADING)
    middle = beside - SECTION // 2
    ImageDraw.Draw(sheet).line([(middle, top), (middle, sheet.height - BORDER)], RULE)
    for number, group in enumerate(groups):
        left, top = layout.place_of_group(number)
        if number:
            ends = [(left, top - BETWEEN), (sheet.width - BORDER, top - BETWEEN)]
            ImageDraw.Draw(sheet).line(ends, RULE)
        _draw(sheet, (left, top), group.leading)
        for at, picture in enumerate(group.others):
            _draw(sheet, layout.place_of_other(number, at), picture)
    return sheet


def _explain(sheet: Image.Image, words: Words) -> None:
    """Write the explanations at the top, with a sample of each kind of frame."""
    top, sample, width = BORDER, 3 * TEXT_HEIGHT, sheet.width - 2 * BORDER
    for frame, text in words.frames.items():
        _draw_frame(sheet, (BORDER, top), (sample - 8, TEXT_HEIGHT), frame)
        _write(sheet, (BORDER + sample, top), text, width - sample)
        top += EXPLANATION_HEIGHT
    for text in words.notes:
        _write(sheet, (BORDER, top), text, width, colour=FAINT)
        top += EXPLANATION_HEIGHT


def _draw(sheet: Image.Image, place: Place, picture: Picture) -> None:
    """Draw a picture with its frame and its caption, each within its own cell."""
    left, top = place
    inner = (left + FRAME, top + FRAME, left + CELL - FRAME, top + CELL - FRAME)
    sheet.paste(PAPER, inner)
    if picture.image is not None:
        width, height = picture.image.size
        corner = left + (CELL - width) // 2, top + (CELL - height) // 2
        sheet.paste(picture.image, corner)
    else:
        middle = left + 2 * FRAME, top + (CELL - TEXT_HEIGHT) // 2
        _write(sheet, middle, "cannot be read", PICTURE - 2 * FRAME, colour=FAINT)
    _draw_frame(sheet, place, (CELL, CELL), picture.frame)
    top += CELL + 2
    if picture.note:
        _write(sheet, (left, top), picture.note, CELL)
        top += TEXT_HEIGHT
    for line in fit(picture.name, CELL, TEXT, NAME_LINES):
        line.draw(sheet, (left, top), (CELL, TEXT_HEIGHT))
        top += TEXT_HEIGHT


def _draw_frame(sheet: Image.Image, place: Place, size: tuple[int, int], frame: Frame) -> None:
    """Draw a frame inside the box of a size at a place, solid or dashed; a plain one is thin."""
    (left, top), (width, height) = place, size
    thickness = 1 if frame == "plain" else FRAME - 1
    right, bottom = left + width, top + height
    colour = COLOURS[frame]
    dash, gap = (DASH, GAP) if frame in DASHED else (max(size), 0)
    for start in range(0, width, dash + gap):
        ends = left + start, min(left + start + dash, right)
        sheet.paste(colour, (ends[0], top, ends[1], top + thickness))
        sheet.paste(colour, (ends[0], bottom - thickness, ends[1], bottom))
    for start in range(0, height, dash + gap):
        ends = top + start, min(top + start + dash, bottom)
        sheet.paste(colour, (left, ends[0], left + thickness, ends[1]))
        sheet.paste(colour, (right - thickness, ends[0], right, ends[1]))


def _write(
    sheet: Image.Image,
    place: Place,
    text: str,
    width: int,
    size: int = TEXT,
    colour: str = "black",
) -> None:
    """Write one line of text, no wider than `width`."""
    (line,) = fit(text, width, size)
    line.draw(sheet, place, (width, TEXT_HEIGHT if size == TEXT else HEADING_HEIGHT), colour)
