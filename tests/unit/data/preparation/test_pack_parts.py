"""The parts of a pack: of any number, written by any number, gone on with after a kill."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from and_dist.data.datasets import index_folder
from and_dist.data.index import open_manifest
from and_dist.data.preparation.pack import Packed, plan_pack, write_pack
from and_dist.data.preparation.prepare import Job, prepare
from and_dist.data.stores import ArchiveStore
from and_dist.data.transcode import PackOptions
from tests.pictures import files_of, picture, save
from tests.unit.data.preparing import (
    encoded,
    labels,
    run,
    tar_members,
)


class Impatient:
    """A reporter at which somebody presses Ctrl-C once the first part of a pack is written."""

    def __init__(self) -> None:
        self._is_packing = False

    def start(self, what: str, total: int) -> None:
        assert total
        self._is_packing = what.endswith("packing")

    def advance(self, count: int) -> None:
        if self._is_packing and count:
            raise KeyboardInterrupt


@pytest.mark.parametrize("options", [PackOptions(pack=True), PackOptions(raw=99)])
@pytest.mark.parametrize("workers", [1, 2])
def test_several_parts_are_one_pack(
    tmp_path: Path, many: Path, options: PackOptions, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encoded(run(many, tmp_path / "whole", options))
    monkeypatch.setattr("and_dist.data.preparation.pack.PART_BYTES", 5000)
    images = run(many, tmp_path / "parts", options, workers=workers)
    assert len(list((tmp_path / "parts" / "train").glob("0*"))) > 3
    assert encoded(images) == whole
    assert labels(images) == [0] * 6 + [1] * 6
    if options.pack:
        assert [c for _, c in tar_members(tmp_path / "parts" / "train")] == whole


@pytest.mark.parametrize("options", [PackOptions(pack=True), PackOptions(raw=99)])
@pytest.mark.parametrize("largest", [10_240, 15_000])
def test_no_file_of_a_pack_is_larger_than_it_may_be(
    tmp_path: Path, many: Path, options: PackOptions, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tar ends in zeros up to a multiple of 10,240 bytes."""
    whole = encoded(run(many, tmp_path / "whole", options))
    monkeypatch.setattr("and_dist.data.preparation.pack.SHARD_BYTES", largest)
    images = run(many, tmp_path / "shards", options)
    shards = sorted((tmp_path / "shards" / "train").glob("0*"))
    assert len(shards) >= 2
    assert max(shard.stat().st_size for shard in shards) <= largest
    assert encoded(images) == whole


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("and_dist.data.preparation.pack.PART_BYTES", 5000)


def pack_many(many: Path, folder: Path, options: PackOptions | None = None) -> Packed:
    """write_pack itself, whose parts stay as they are after a kill."""
    index = index_folder(many).index
    length_N = np.array([path.stat().st_size for path in files_of(many)])
    folder.mkdir(exist_ok=True)
    parts = plan_pack(
        index, np.arange(len(index)), length_N, folder, options or PackOptions(pack=True)
    )
    return write_pack(parts, index.content_hash, 1, lambda _: None)


def read_packed(packed: Packed) -> list[bytes]:
    store = packed.index.store
    assert isinstance(store, ArchiveStore)
    return [store.read(row) for row in range(len(packed.rows))]


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}


@pytest.mark.usefixtures("small_parts")
def test_a_pack_goes_on_where_it_was_killed(tmp_path: Path, many: Path) -> None:
    folder = tmp_path / "train.pack"
    first = pack_many(many, folder)
    before = times(folder)
    assert len(before) > 3
    for name in ("00001.npz", "00001.tar"):
        (folder / name).unlink()
    (folder / ".00001.tar.0123456789abcdef.unfinished").write_bytes(b"half a tar")
    (folder / ".00001.npz.0123456789abcdef.unfinished").write_bytes(b"half a table")
    again = pack_many(many, folder)
    after = times(folder)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"00001.tar"}
    assert again.index.content_hash == first.index.content_hash
    assert read_packed(again) == [path.read_bytes() for path in files_of(many)]
    assert not list(folder.glob(".*"))


def interrupt(source: Path, out: Path, options: PackOptions) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(Job(source, out, options, "stop", 1, Impatient()))


@pytest.mark.usefixtures("small_parts")
def test_an_interrupted_preparation_goes_on(tmp_path: Path, many: Path) -> None:
    options, out = PackOptions(pack=True), tmp_path / "out"
    whole = run(many, tmp_path / "whole", options)
    interrupt(many, out, options)
    assert not (out / "train").exists()
    (building,) = out.glob(".train.*.building")
    before = times(building)
    images = run(many, out, options)
    after = times(out / "train")
    assert after["00000.tar"] == before["00000.tar"]
    assert images.index.content_hash == whole.index.content_hash
    assert encoded(images) == encoded(whole)
    assert os.listdir(out) == ["train"]
    assert {path.suffix for path in (out / "train").glob("0*")} == {".tar"}


@pytest.mark.usefixtures("small_parts")
def test_an_interruption_leaves_no_manifest_of_what_was_overwritten(
    tmp_path: Path, many: Path
) -> None:
    """The old manifest and its images are there until the new ones are."""
    before = encoded(run(many, tmp_path / "out", PackOptions(pack=True)))
    interrupt(many, tmp_path / "out", PackOptions(pack=True, resize=9))
    assert encoded(open_manifest(tmp_path / "out" / "train")) == before


@pytest.mark.usefixtures("small_parts")
def test_other_options_write_the_parts_anew(tmp_path: Path, many: Path) -> None:
    folder = tmp_path / "train.pack"
    pack_many(many, folder)
    resized = pack_many(many, folder, PackOptions(pack=True, resize=9))
    assert np.minimum(resized.index.heights_N, resized.index.widths_N).tolist() == [9] * 12
    for content in read_packed(resized):
        assert min(Image.open(io.BytesIO(content)).size) == 9
    better = pack_many(many, folder, PackOptions(pack=True, resize=9, quality=95))
    assert read_packed(better) != read_packed(resized)


def lose_a_part(_: Path, folder: Path) -> None:
    (folder / "00001.tar").unlink()


def replace_an_image(many: Path, _: Path) -> None:
    save(many / "b" / "11.png", picture(99, (24, 30)))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("change", [lose_a_part, replace_an_image])
def test_what_changed_writes_its_part_anew(
    tmp_path: Path, many: Path, change: Callable[[Path, Path], None]
) -> None:
    folder = tmp_path / "train.pack"
    pack_many(many, folder)
    change(many, folder)
    again = pack_many(many, folder)
    assert read_packed(again) == [path.read_bytes() for path in files_of(many)]


def test_other_files_of_the_same_size_write_their_part_anew(tmp_path: Path) -> None:
    """All BMPs of 8 x 8 have as many bytes, so their names and times have to tell them apart."""
    for name in ("one", "two"):
        save(tmp_path / name / f"{name}.bmp", picture(len(name) + ord(name[0]), (8, 8)))
    folder = tmp_path / "train.pack"
    pack_many(tmp_path / "one", folder)
    packed = pack_many(tmp_path / "two", folder)
    assert read_packed(packed) == [(tmp_path / "two" / "two.bmp").read_bytes()]


@pytest.mark.usefixtures("small_parts")
def test_a_second_preparation_leaves_nothing_of_the_first(tmp_path: Path, many: Path) -> None:
    run(many, tmp_path / "out", PackOptions(pack=True))
    run(many, tmp_path / "out", PackOptions(raw=9))
    assert [path.name for path in (tmp_path / "out" / "train").glob("0*")] == ["00000.bin"]
