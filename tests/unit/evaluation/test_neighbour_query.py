"""The class of an image that somebody asks about."""

from __future__ import annotations

from pathlib import Path

import pytest

from and_dist.data.datasets import index_folder
from and_dist.evaluation.neighbour_query import class_by_folder
from tests.pictures import save_pictures


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("a/0.png", "a"),
        ("mine/b/cats/striped/0.png", "b"),
        ("a/b/0.png", "b"),  # the nearest
        ("cats/0.png", None),
        ("0.png", "a"),  # by the folder where one stands
        ("../b/0.png", "b"),
    ],
)
def test_it_is_the_nearest_folder_named_like_a_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, label: str | None
) -> None:
    images = index_folder(save_pictures(tmp_path / "set", [(8, 8)] * 2, "ab", ["png"]))
    place = tmp_path / "elsewhere" / ("a" if path in ("0.png", "../b/0.png") else "c")
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    assert class_by_folder(Path(path), images) == label
    assert class_by_folder(Path(path), None) is None
