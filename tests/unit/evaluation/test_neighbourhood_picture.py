"""The picture of a round's neighbourhoods, which the trackers show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from and_dist.data.datasets import load_images
from and_dist.data.index import ImageIndex, LabelledImages
from and_dist.evaluation.neighbourhood_picture import (
    MOST_ANCHORS,
    MOST_NEIGHBOURS,
    MOST_PIXELS,
    choose_rows,
    draw_neighbourhoods,
    write_neighbourhoods,
)
from and_dist.evaluation.picture_sheet import CELL, COLOURS, Layout
from and_dist.method.neighbour_table import Neighbourhoods, all_instances
from and_dist.runs.round_pictures import is_picture, keep_pictures, picture_path, read_picture
from and_dist.utils.owned_files import NotOursError
from tests.pictures import cut_pixels, files_of, save_pictures

N, K = 12, 2


@pytest.fixture
def images(tmp_path: Path) -> LabelledImages:
    """Row n is of class a below 6 and of class b from there on."""
    folder = save_pictures(tmp_path / "photos", [(40, 30)] * N, "ab")
    return load_images(str(folder), None, "data.train")


def table(neighbours: int = K) -> Neighbourhoods:
    """Row 3 is of the lowest entropy; its neighbours are 4, of its class, and 7, of the other."""
    steps = torch.tensor([1, 4, *range(5, 20)])[:neighbours]
    neighbours_NK = (torch.arange(N)[:, None] + steps) % N
    anchors_A = torch.tensor([3, *(row for row in range(N) if row != 3)])
    return Neighbourhoods(neighbours_NK, torch.linspace(0.5, 4, N).double(), anchors_A)


def colours_of(sheet: Image.Image, layout: Layout, group: int) -> list[str]:
    """The kinds of frames of an anchor's neighbours."""
    names = {ImageColor.getrgb(colour): name for name, colour in COLOURS.items()}
    places = [layout.place_of_other(group, at) for at in range(layout.others)]
    return [names[sheet.getpixel(place)] for place in places]  # type: ignore[index]  # RGB


def test_frames_tell_whether_a_neighbour_is_of_the_anchors_class(images: LabelledImages) -> None:
    sheet = draw_neighbourhoods(table(), images, 1)
    layout = Layout(MOST_ANCHORS, K, 3)
    assert sheet.size == layout.size
    assert colours_of(sheet, layout, 0) == ["same", "other"]


def test_without_labels_no_frame_tells_a_class(images: LabelledImages) -> None:
    unlabelled = replace(images, labels_N=None, class_names=())
    sheet = draw_neighbourhoods(table(), unlabelled, 1)
    layout = Layout(MOST_ANCHORS, K, 1)
    assert sheet.size == layout.size
    assert {kind for group in range(8) for kind in colours_of(sheet, layout, group)} == {"plain"}


def test_it_is_the_same_to_the_bit_each_time(images: LabelledImages, tmp_path: Path) -> None:
    for run in ("one", "other"):
        (tmp_path / run).mkdir()
        write_neighbourhoods(table(), images, tmp_path / run, 1)
    one, other = (picture_path(tmp_path / run, 1) for run in ("one", "other"))
    assert one.read_bytes() == other.read_bytes() == read_picture(tmp_path / "one", 1)
    write_neighbourhoods(table(1), images, tmp_path / "one", 1)
    assert one.read_bytes() != other.read_bytes(), "it replaces its own"


def test_an_image_that_cannot_be_read_is_left_blank(images: LabelledImages, tmp_path: Path) -> None:
    whole = np.asarray(draw_neighbourhoods(table(), images, 1))
    cut_pixels(files_of(tmp_path / "photos")[3])
    partial = np.asarray(draw_neighbourhoods(table(), images, 1))
    assert whole.shape == partial.shape
    left, top = Layout(MOST_ANCHORS, K, 3).place_of_group(0)
    is_same = (whole == partial).all(axis=2)
    assert not is_same[top : top + CELL, left : left + CELL].all()
    assert is_same[: top - 1].all()


def test_a_round_without_anchors_has_no_picture(images: LabelledImages, tmp_path: Path) -> None:
    write_neighbourhoods(all_instances(N, K, torch.device("cpu")), images, tmp_path, 1)
    assert list(tmp_path.iterdir()) == [tmp_path / "photos"]


def test_a_file_of_somebody_else_stays_and_is_not_shown(
    images: LabelledImages, tmp_path: Path
) -> None:
    path = picture_path(tmp_path, 1)
    path.parent.mkdir()
    Image.new("RGB", (9, 9)).save(path)
    before = path.read_bytes()
    assert not is_picture(path)
    assert read_picture(tmp_path, 1) is None
    with pytest.raises(NotOursError, match=r"round-01\.png exists and was not written by and-dist"):
        write_neighbourhoods(table(), images, tmp_path, 1)
    keep_pictures(tmp_path, ())
    assert path.read_bytes() == before


def test_pictures_of_other_rounds_are_removed_and_nothing_else(
    images: LabelledImages, tmp_path: Path
) -> None:
    for round_index in (1, 2, 3, 100):
        write_neighbourhoods(table(), images, tmp_path, round_index)
    folder = picture_path(tmp_path, 1).parent
    (folder / "round-2.png").write_bytes((folder / "round-02.png").read_bytes())
    (folder / "notes.txt").write_text("mine")
    keep_pictures(tmp_path, {1, 2})
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["notes.txt", "round-01.png", "round-02.png", "round-2.png"]


def test_fewer_are_drawn_where_images_are_very_large(images: LabelledImages) -> None:
    """A discovery waits for the picture, which takes about a second at most."""
    found, index = table(N - 1), images.index
    assert [len(rows) for rows in choose_rows(found, index)] == [1 + MOST_NEIGHBOURS] * MOST_ANCHORS

    def with_side(side: int) -> ImageIndex:
        sides = np.full(N, side, np.int32)
        return replace(index, heights_N=sides, widths_N=sides)

    megapixels = choose_rows(found, with_side(4000))
    assert [len(rows) for rows in megapixels] == [8, 8, 8]
    assert sum(map(len, megapixels)) * 4000**2 / 10 < MOST_PIXELS
    assert choose_rows(found, with_side(60_000)) == [[3, 4]], "an anchor and one neighbour always"
