"""--verify finds what no header tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from and_dist.data.preparation.verify import find_undecodable
from tests.pictures import cut_pixels, files_of, save_pictures
from tests.unit.data.preparing import labels, run


def test_verify_finds_what_headers_do_not_tell(tmp_path: Path, source: Path) -> None:
    cut_pixels(source / "a" / "1.jpg")
    assert len(run(source, tmp_path / "out").index) == 6
    with pytest.raises(ValueError, match=r"a/1\.jpg: .*cut short \(1 of 6"):
        run(source, tmp_path / "verified", check=find_undecodable)
    assert not (tmp_path / "verified" / "train").exists()
    images = run(source, tmp_path / "verified", bad_images="skip", check=find_undecodable)
    assert labels(images) == [0, 1, 1, 2, 2]
    said = (tmp_path / "verified" / "train" / "bad_images.txt").read_text()
    assert said.startswith(f"{source}/a/1.jpg: ")
    assert said.count("\n") == 1


def test_verify_leaves_out_what_is_bad_already(tmp_path: Path, source: Path) -> None:
    (source / "a" / "0.jpg").write_bytes(b"")
    cut_pixels(source / "c" / "5.jpg")
    images = run(source, tmp_path / "out", bad_images="skip", check=find_undecodable)
    assert labels(images) == [0, 1, 1, 2]
    said = (tmp_path / "out" / "train" / "bad_images.txt").read_text().splitlines()
    assert said[0].endswith("a/0.jpg: it is empty")
    assert "c/5.jpg: " in said[1]
    assert len(said) == 2


def test_verify_of_nothing_but_bad_images_is_a_sentence(tmp_path: Path) -> None:
    for path in files_of(save_pictures(tmp_path / "source", [(60, 50)] * 3)):
        cut_pixels(path)
    with pytest.raises(ValueError, match="all 3 images of the train split are bad"):
        run(tmp_path / "source", tmp_path / "out", bad_images="skip", check=find_undecodable)
