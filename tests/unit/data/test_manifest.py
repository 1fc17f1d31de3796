"""Prepared images whose columns are bent, lost or exchanged are refused by the file's name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from and_dist.config.load import load_config
from and_dist.data.index import open_manifest
from and_dist.data.manifest import MANIFEST
from and_dist.data.transcode import PackOptions
from and_dist.planning.workload import count_rows
from tests.unit.data.preparing import run


@pytest.fixture(params=[PackOptions(), PackOptions(raw=16)], ids=["listed", "raw"])
def split(tmp_path: Path, source: Path, request: pytest.FixtureRequest) -> Path:
    run(source, tmp_path / "out", request.param)
    return tmp_path / "out" / "train"


def forget_sums(split: Path, *more: str) -> None:
    """Make it a set of an earlier revision."""
    about = json.loads((split / MANIFEST).read_text())
    for key in ("sums", "crc", *more):
        del about[key]
    (split / MANIFEST).write_text(json.dumps(about))


def flip(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_every_column_is_compared(split: Path) -> None:
    open_manifest(split)
    for file in [*split.glob("*.npy"), *split.glob("names.bin"), split / "classes.json"]:
        whole = file.read_bytes()
        for bend in (flip, lambda path: path.write_bytes(b""), Path.unlink):
            bend(file)
            with pytest.raises(ValueError, match=f"cannot be read: {file.name}.*prepare the"):
                open_manifest(split)
            file.write_bytes(whole)
    open_manifest(split)


def test_a_manifest_tells_of_itself(split: Path) -> None:
    manifest = split / MANIFEST
    rows = json.loads(manifest.read_text())["rows"]
    manifest.write_text(manifest.read_text().replace(f'"rows": {rows}', f'"rows": {rows - 1}'))
    with pytest.raises(ValueError, match=r"cannot be read: manifest\.json: it is not as it was"):
        open_manifest(split)
    with pytest.raises(ValueError, match=r"^data\.train=.*manifest\.json: it is not as it was"):
        count_rows(load_config([], [f"data.train={split}"]).data)


@pytest.mark.parametrize("text", ["", "[]", "{}", "x", "[" * 10**5, '{"format": 1, "kind": 3}'])
def test_what_is_no_manifest_is_refused(split: Path, text: str) -> None:
    (split / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=r"cannot be read: manifest\.json: "):
        open_manifest(split)


@pytest.mark.parametrize("more", [(), ("holds",)])
def test_a_set_of_an_earlier_revision_opens(split: Path, more: tuple[str, ...]) -> None:
    before = open_manifest(split)
    forget_sums(split, *more)
    after = open_manifest(split)
    assert after.index.content_hash == before.index.content_hash
    assert after.class_names == before.class_names


def exchange(split: Path) -> None:
    (split / "heights.npy").rename(split / "other.npy")
    (split / "length.npy").rename(split / "heights.npy")
    (split / "other.npy").rename(split / "length.npy")


@pytest.mark.parametrize(
    ("bend", "said"),
    [
        (
            lambda split: (split / "labels.npy").unlink(),
            "only one of labels",
        ),
        (
            lambda split: (split / "labels.npy").write_bytes(b""),
            r"labels\.npy: No data left",
        ),
        (lambda split: np.save(split / "labels.npy", np.full(6, 7)), "a label of 7, and classes"),
        (lambda split: np.save(split / "labels.npy", np.zeros(3, int)), r"of shape \[3\], and"),
        (lambda split: np.save(split / "heights.npy", np.ones(6)), r"heights\.npy is float64"),
        (
            lambda split: np.save(split / "widths.npy", np.full(6, -5)),
            r"widths\.npy has a value",
        ),
    ],
)
def test_columns_of_an_earlier_revision_have_to_fit(
    split: Path, bend: Callable[[Path], object], said: str
) -> None:
    forget_sums(split, "holds")
    bend(split)
    with pytest.raises(ValueError, match=said):
        open_manifest(split)


def test_the_hash_of_an_earlier_revision_is_compared(tmp_path: Path, source: Path) -> None:
    run(source, tmp_path / "out")
    split = tmp_path / "out" / "train"
    forget_sums(split)
    shutil.copytree(split, tmp_path / "other")
    flip(split / "names.bin", 3)
    with pytest.raises(ValueError, match="its columns are not as they were written"):
        open_manifest(split)
    exchange(tmp_path / "other")
    with pytest.raises(ValueError, match="cannot be read"):
        open_manifest(tmp_path / "other")
