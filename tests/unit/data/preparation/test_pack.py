"""What a pack holds: the bytes, the sides and the re-encoded images of its source."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from and_dist.data.transcode import PackOptions, target_size
from tests.pictures import files_of, picture, save
from tests.unit.data.preparing import SIZES, distance, encoded, labels, run, sides, tar_members


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pack_keeps_the_bytes_of_the_images(tmp_path: Path, source: Path, workers: int) -> None:
    images = run(source, tmp_path / "out", PackOptions(pack=True), workers=workers)
    originals = [path.read_bytes() for path in files_of(source)]
    assert encoded(images) == originals
    assert sides(images) == [(height, width) for width, height in SIZES]
    assert labels(images) == [0, 0, 1, 1, 2, 2]
    assert images.class_names == ("a", "b", "c")
    members = tar_members(tmp_path / "out" / "train")
    assert [content for _, content in members] == originals
    names = [name for name, _ in members]
    assert names == sorted(names)
    assert [Path(name).suffix for name in names] == [path.suffix for path in files_of(source)]
    assert [path.name for path in (tmp_path / "out" / "train").glob("0*")] == ["00000.tar"]


XMP = b"""http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description tiff:Orientation="6"
xmlns:tiff="http://ns.adobe.com/tiff/1.0/"/></rdf:RDF></x:xmpmeta>"""


def test_a_pack_has_the_sides_its_images_had_before(tmp_path: Path) -> None:
    """An orientation in XMP alone is one that Pillow follows and DALI does not."""
    path = save(tmp_path / "source" / "a.jpg", picture(1, (30, 20)))
    content = path.read_bytes()
    segment = b"\xff\xe1" + (len(XMP) + 2).to_bytes(2, "big") + XMP
    path.write_bytes(content[:2] + segment + content[2:])
    in_place = run(tmp_path / "source", tmp_path / "out")
    packed = run(tmp_path / "source", tmp_path / "packed", PackOptions(pack=True))
    assert sides(packed) == sides(in_place)


def test_resize_cuts_the_shorter_side_down_and_leaves_small_images(
    tmp_path: Path, source: Path
) -> None:
    images = run(source, tmp_path / "out", PackOptions(pack=True, resize=20))
    assert sides(images) == [(20, 27), (50, 20), (16, 16), (20, 39), (70, 9), (21, 20)]
    was_small = [min(size) <= 20 for size in SIZES]
    for row, path in enumerate(files_of(source)):
        content = encoded(images)[row]
        assert (content == path.read_bytes()) == was_small[row]
        with Image.open(io.BytesIO(content)) as image:
            assert image.size == sides(images)[row][::-1]
            assert image.format == "JPEG"
            expected = picture(row, SIZES[row]).resize(image.size, Image.Resampling.BICUBIC)
            assert distance(np.asarray(image), np.asarray(expected)) < 12
            assert distance(np.asarray(image), np.asarray(expected)[::-1]) > 24


def test_a_better_quality_takes_more_bytes(tmp_path: Path, source: Path) -> None:
    sums = [
        sum(map(len, encoded(run(source, tmp_path / str(q), PackOptions(True, 20, quality=q)))))
        for q in (30, 95)
    ]
    assert sums[0] < sums[1]


@pytest.mark.parametrize(
    ("given", "side", "expected"),
    [
        ((30, 40), 15, (15, 20)),
        ((40, 30), 15, (20, 15)),
        ((15, 40), 15, (15, 40)),
        ((14, 40), 15, (14, 40)),
        ((3, 1000), 2, (2, 667)),
        ((30, 40), None, (30, 40)),
    ],
)
def test_target_size(given: tuple[int, int], side: int | None, expected: tuple[int, int]) -> None:
    assert target_size(*given, side) == expected


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"raw": 64, "pack": True}, "choose one"),
        ({"raw": 64, "resize": 64}, "choose one"),
        ({"resize": 64}, "--resize needs --pack"),
        ({"pack": True, "quality": 50}, "--quality needs --resize"),
        ({"raw": 64, "quality": 90}, "--quality needs --resize"),
        ({"pack": True, "resize": 64, "quality": 0}, r"--quality 0 is not one of 1\.\.100"),
        ({"pack": True, "resize": 64, "quality": 101}, "--quality 101"),
        ({"raw": -1}, "above 0"),
        ({"raw": 0}, "above 0"),
        ({"pack": True, "resize": -5}, "above 0"),
        ({"pack": True, "resize": 0}, "above 0"),
    ],
)
def test_impossible_options_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PackOptions(**given)
