"""Files that belong together are published together, or none of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from and_dist.utils.output_folders import publish_files
from and_dist.utils.owned_files import NotOursError


def write(folder: Path, theirs: str) -> None:
    """Write a and b, where somebody else's b comes up while they are written."""
    with publish_files({"a": folder / "a", "b": folder / "b"}) as building:
        for name in "ab":
            (building / name).write_text(name)
        if theirs:
            (folder / "b").write_text(theirs)


def test_files_are_published_together(tmp_path: Path) -> None:
    write(tmp_path, "")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_no_file_is_left_if_one_cannot_be_published(tmp_path: Path) -> None:
    with pytest.raises(NotOursError, match="was not written by and-dist"):
        write(tmp_path, "theirs")
    assert os.listdir(tmp_path) == ["b"]
    assert (tmp_path / "b").read_text() == "theirs"
