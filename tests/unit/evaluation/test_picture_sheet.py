"""Sheets of pictures: where everything stands, and what a frame tells."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageColor

from and_dist.evaluation.lettering import Line
from and_dist.evaluation.picture_sheet import (
    CELL,
    COLOURS,
    FRAME,
    MOST_COLUMNS,
    PAPER,
    PICTURE,
    Frame,
    Group,
    Layout,
    Picture,
    Words,
    draw_sheet,
)

NAMES = ("short.png", "a name of some length " * 9, "\n\u202eعربي", "😀👨\u200d👩", "猫" * 40, "")
FRAMES: dict[Frame, str] = {"same": "same", "other": "other"}
WORDS = Words("query", "most similar training images", FRAMES, ("note",))
Box = tuple[int, int, int, int]


def a_picture(frame: Frame = "plain", size: tuple[int, int] = (PICTURE, PICTURE)) -> Picture:
    return Picture(Image.new("RGB", size, "#204060"), "note", "name", frame)


def groups_of(count: int, others: int) -> list[Group]:
    def one(number: int) -> Picture:
        name = NAMES[number % len(NAMES)]
        return Picture(None, f"class {name}" if number % 2 else "", name, "same")

    return [
        Group(one(at), tuple(one(at + 1 + other) for other in range(others))) for at in range(count)
    ]


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[Box]:
    """Where texts are drawn, beyond which nothing of them is seen."""
    found: list[Box] = []
    draw = Line.draw

    def note(line: Line, sheet: Image.Image, place: object, size: object, *more: str) -> None:
        (left, top), (width, height) = place, size  # type: ignore[misc]  # both are pairs
        found.append((left, top, left + width, top + height))
        assert line.width <= width
        draw(line, sheet, (left, top), (width, height), *more)

    monkeypatch.setattr(Line, "draw", note)
    return found


def overlap(one: Box, other: Box) -> bool:
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(
        one[3], other[3]
    )


@pytest.mark.parametrize(("count", "others"), [(1, 1), (1, 8), (2, 23), (40, 3)])
def test_no_words_overlap_or_leave_the_sheet(count: int, others: int, boxes: list[Box]) -> None:
    sheet = draw_sheet(groups_of(count, others), WORDS)
    assert len(boxes) >= count * (others + 1)
    assert all(0 <= b[0] < b[2] <= sheet.width and 0 <= b[1] < b[3] <= sheet.height for b in boxes)
    assert not any(overlap(*pair) for pair in combinations(boxes, 2))


def test_pictures_are_told_from_their_query_by_their_place() -> None:
    layout = Layout(groups=2, others=MOST_COLUMNS + 1, explanations=2)
    query, first, second = (
        layout.place_of_group(0),
        layout.place_of_other(0, 0),
        layout.place_of_other(0, 1),
    )
    assert first[1] == query[1]
    assert first[0] - query[0] > second[0] - first[0], "more room than between two others"
    below = layout.place_of_other(0, MOST_COLUMNS)
    assert below[0] == first[0]
    assert query[1] + CELL < below[1] < layout.place_of_group(1)[1] - CELL


@pytest.mark.parametrize("frame", ["plain", "same", "other"])
def test_a_frame_is_told_by_its_colour_and_by_its_dashes(frame: Frame) -> None:
    sheet = draw_sheet([Group(a_picture(), (a_picture(frame),))], Words("a", "b", {}))
    left, top = Layout(1, 1, 0).place_of_other(0, 0)
    side = np.asarray(sheet)[top, left : left + CELL]
    is_frame = (side == ImageColor.getrgb(COLOURS[frame])).all(axis=1)
    assert is_frame[0]
    assert is_frame.all() == (frame != "other")
    inside = np.asarray(sheet)[top + 1, left + FRAME]
    assert (tuple(inside) == ImageColor.getrgb(COLOURS[frame])) == (frame != "plain")


def test_a_picture_keeps_its_shape_and_one_that_is_missing_is_blank() -> None:
    wide = a_picture(size=(PICTURE, 10))
    sheet = np.asarray(draw_sheet([Group(wide, (Picture(None, "", ""),))], Words("a", "b", {})))
    left, top = Layout(1, 1, 0).place_of_group(0)
    column = sheet[top + FRAME : top + CELL - FRAME, left + CELL // 2]
    is_picture = (column == (0x20, 0x40, 0x60)).all(axis=1)
    assert is_picture.sum() == 10
    assert (column[~is_picture] == ImageColor.getrgb(PAPER)).all()
    left, top = Layout(1, 1, 0).place_of_other(0, 0)
    upper = sheet[top + FRAME : top + CELL // 3, left + FRAME : left + CELL - FRAME]
    assert (upper == ImageColor.getrgb(PAPER)).all()
