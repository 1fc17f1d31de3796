"""prepare() from a source to what open_manifest gives back, and what is left after it fails."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from and_dist.data.index import open_manifest
from and_dist.data.preparation.prepare import Check, Job, prepare
from and_dist.data.preparation.verify import find_undecodable
from and_dist.data.transcode import PackOptions
from tests.pictures import cut_pixels, files_of, picture, save, write
from tests.unit.data.importers.cifar import CIFAR_IMAGES, CIFAR_LABELS, cifar10_binary
from tests.unit.data.preparing import SIZES, encoded, labels, pixels, run, sides

REWRITES = [PackOptions(), PackOptions(pack=True), PackOptions(True, 9), PackOptions(raw=9)]
DECODING = [PackOptions(True, 9), PackOptions(raw=9)]


class Tally:
    """A silent reporter that knows what was announced and what was done."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.done: dict[str, int] = {}

    def start(self, what: str, total: int) -> None:
        self.totals[what], self.done[what] = total, 0

    def advance(self, count: int) -> None:
        self.done[next(reversed(self.done))] += count


@pytest.mark.parametrize("workers", [1, 2])
def test_class_folders_become_a_manifest(tmp_path: Path, source: Path, workers: int) -> None:
    tally = Tally()
    job = Job(source, tmp_path / "out", PackOptions(), "stop", workers, tally)
    made = prepare(job)["train"]
    images = open_manifest(tmp_path / "out" / "train")
    assert len(images.index) == len(made.index) == 6
    assert labels(images) == labels(made) == [0, 0, 1, 1, 2, 2]
    assert images.class_names == made.class_names == ("a", "b", "c")
    assert images.index.content_hash == made.index.content_hash
    assert sides(images) == [(height, width) for width, height in SIZES]
    assert encoded(images) == [path.read_bytes() for path in files_of(source)]
    assert tally.totals == tally.done == {"train: reading headers": 6}
    assert not (tmp_path / "out" / "train" / "bad_images.txt").exists()


def test_every_split_gets_its_manifest(tmp_path: Path) -> None:
    for name in ("train/a/0.png", "train/b/1.png", "val/b/2.png"):
        save(tmp_path / "source" / name, picture(0, (8, 8)))
    job = Job(tmp_path / "source", tmp_path / "out", PackOptions(pack=True), "stop", 1, Tally())
    prepared = prepare(job)
    assert {name: len(images.index) for name, images in prepared.items()} == {"train": 2, "test": 1}
    folders = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert folders == ["test", "train"]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    save(tmp_path / "source" / "a.png", picture(0, (8, 8)))
    images = run(tmp_path / "source", tmp_path / "out")
    assert (images.labels_N, images.class_names) == (None, ())


@pytest.mark.parametrize("options", [PackOptions(), PackOptions(pack=True), PackOptions(raw=8)])
def test_the_hash_is_of_the_images_and_nothing_else(
    tmp_path: Path, source: Path, options: PackOptions
) -> None:
    before = run(source, tmp_path / "one", options).index.content_hash
    moved = shutil.copytree(source, tmp_path / "moved")
    assert run(moved, tmp_path / "two", options, workers=2).index.content_hash == before
    save(source / "b" / "2.jpg", picture(9, (17, 16)))
    assert run(source, tmp_path / "one", options).index.content_hash != before


def test_a_relative_source_is_found_from_anywhere(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(Path("source"), Path("out"))
    run(Path("source"), Path("packed"), PackOptions(pack=True))
    monkeypatch.chdir("/")
    expected = [path.read_bytes() for path in files_of(source)]
    assert encoded(open_manifest(tmp_path / "out" / "train")) == expected
    assert encoded(open_manifest(tmp_path / "packed" / "train")) == expected


BAD = [
    (lambda path: path.write_bytes(b""), "it is empty"),
    (lambda path: path.write_bytes(b"a letter"), "its header is of no known image format"),
]


@pytest.mark.parametrize("options", REWRITES)
@pytest.mark.parametrize(("damage", "reason"), BAD)
def test_stop_names_the_first_bad_image_and_leaves_no_manifest(
    tmp_path: Path,
    source: Path,
    options: PackOptions,
    damage: Callable[[Path], Any],
    reason: str,
) -> None:
    damage(source / "b" / "2.jpg")
    damage(source / "c" / "5.jpg")
    with pytest.raises(ValueError, match=rf"b/2\.jpg: {reason} \(2 of 6 images of the train split"):
        run(source, tmp_path / "out", options)
    assert not (tmp_path / "out" / "train").exists()


@pytest.mark.parametrize("options", REWRITES)
@pytest.mark.parametrize(("damage", "reason"), BAD)
def test_skip_leaves_bad_images_out_and_says_why(
    tmp_path: Path,
    source: Path,
    options: PackOptions,
    damage: Callable[[Path], Any],
    reason: str,
) -> None:
    damage(source / "b" / "2.jpg")
    damage(source / "c" / "5.jpg")
    images = run(source, tmp_path / "out", options, "skip")
    assert labels(images) == [0, 0, 1, 2]
    assert images.class_names == ("a", "b", "c")
    without = shutil.copytree(source, tmp_path / "without")
    for name in ("b/2.jpg", "c/5.jpg"):
        (without / name).unlink()
    same = run(without, tmp_path / "same", options)
    assert (sides(images), encoded(images)) == (sides(same), encoded(same))
    written = (tmp_path / "out" / "train" / "bad_images.txt").read_text().splitlines()
    assert written == [f"{source}/b/2.jpg: {reason}", f"{source}/c/5.jpg: {reason}"]


@pytest.mark.parametrize("options", DECODING)
def test_stop_leaves_no_manifest_where_an_image_ends_too_early(
    tmp_path: Path, source: Path, options: PackOptions
) -> None:
    cut_pixels(source / "a" / "1.jpg")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"a/1\.jpg: OSError: .*runcated.*\(1 of 6 images"):
            run(source, tmp_path / "out", options)
        assert not (tmp_path / "out" / "train").exists()


@pytest.mark.parametrize("options", DECODING)
def test_skip_leaves_out_what_the_packer_cannot_decode(
    tmp_path: Path, source: Path, options: PackOptions
) -> None:
    cut_pixels(source / "a" / "1.jpg")
    images = run(source, tmp_path / "out", options, "skip")
    assert labels(images) == [0, 1, 1, 2, 2]
    assert "a/1.jpg: OSError: " in (tmp_path / "out" / "train" / "bad_images.txt").read_text()


@pytest.mark.parametrize("options", DECODING)
def test_a_mended_image_is_taken_in(tmp_path: Path, source: Path, options: PackOptions) -> None:
    whole = (source / "a" / "1.jpg").read_bytes()
    cut_pixels(source / "a" / "1.jpg")
    run(source, tmp_path / "out", options, "skip")
    (source / "a" / "1.jpg").write_bytes(whole)
    assert len(run(source, tmp_path / "out", options, "skip").index) == 6
    assert not (tmp_path / "out" / "train" / "bad_images.txt").exists()


@pytest.mark.parametrize("options", REWRITES)
def test_a_set_of_nothing_but_bad_images_is_refused(tmp_path: Path, options: PackOptions) -> None:
    path = save(tmp_path / "source" / "a.jpg", picture(1, (40, 40)))
    if options in DECODING:
        cut_pixels(path)
    else:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="all 1 images of the train split are bad"):
        run(tmp_path / "source", tmp_path / "out", options, "skip")
    assert not (tmp_path / "out" / "train").exists()


def save_cifar(folder: Path) -> None:
    for name, content in cifar10_binary().items():
        write(folder / name, content)


@pytest.mark.parametrize("check", [None, find_undecodable])
def test_images_that_come_as_pixels_become_a_block(tmp_path: Path, check: Check | None) -> None:
    save_cifar(tmp_path / "cifar")
    job = Job(tmp_path / "cifar", tmp_path / "out", PackOptions(), "stop", 1, Tally())
    prepare(job, check)
    shutil.move(tmp_path / "out", tmp_path / "moved")
    train, test = (open_manifest(tmp_path / "moved" / split) for split in ("train", "test"))
    assert (labels(train), labels(test)) == (CIFAR_LABELS[:15], CIFAR_LABELS[15:])
    assert all((pixels(train, row) == CIFAR_IMAGES[row]).all() for row in range(15))
    assert all((pixels(test, row) == CIFAR_IMAGES[15 + row]).all() for row in range(3))


@pytest.mark.parametrize(
    "options", [PackOptions(pack=True), PackOptions(True, 16, quality=50), PackOptions(raw=16)]
)
def test_pixels_are_stored_as_they_are_or_not_at_all(tmp_path: Path, options: PackOptions) -> None:
    save_cifar(tmp_path / "cifar")
    with pytest.raises(ValueError, match=r"/cifar comes as pixels .* leave out --pack, --resize"):
        run(tmp_path / "cifar", tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_images_in_a_tar_stay_in_it(tmp_path: Path, source: Path) -> None:
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for path in files_of(source):
            archive.add(path, path.name)
    images = run(tmp_path / "all.tar", tmp_path / "out")
    assert encoded(images) == [path.read_bytes() for path in files_of(source)]
    assert os.listdir(tmp_path / "out") == ["train"]
    packed = run(tmp_path / "all.tar", tmp_path / "packed", PackOptions(pack=True))
    assert encoded(packed) == encoded(images)
