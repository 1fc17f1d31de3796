"""Folders with whatever people have in them: strays, loops of links, pipes, devices."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from and_dist.data.datasets import index_folder, index_named
from and_dist.data.image_headers import Unreadable, size_of_file
from and_dist.data.importers import find_listings
from and_dist.data.importers.folders import list_folder
from and_dist.data.importers.walking import Walk, describe
from and_dist.data.stores import FileStore, Names
from tests.pictures import picture, save, save_pictures, write


@contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """Open the pipes of a waiting test for writing, so that a failure does not wait for ever."""
    done = threading.Event()

    def free() -> None:
        if not done.wait(seconds):
            os._exit(99)

    threading.Thread(target=free, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def test_strays_are_passed_by_and_counted(tmp_path: Path) -> None:
    save_pictures(tmp_path / "a", [(10, 8)] * 2)
    save_pictures(tmp_path / "b", [(10, 8)])
    for name in ("notes.txt", "a/Thumbs.db", "a/.DS_Store", "b/x.xmp", "b/y.XMP", "b/README"):
        write(tmp_path / name, "no image")
    images = index_folder(tmp_path)
    assert images.class_names == ("a", "b")
    assert len(images.index) == 3
    assert images.ignored == "2 .xmp, 1 .txt, 1 hidden, 1 .db, 1 other"
    (listing,) = find_listings(tmp_path)
    assert listing.ignored == images.ignored


def test_many_kinds_of_strays_take_one_line(tmp_path: Path) -> None:
    for at in range(40):
        write(tmp_path / f"f.k{at:02}", "no image")
    walk = Walk(tmp_path)
    assert [names for _, names in walk] == [[]]
    assert describe(walk.ignored).endswith("1 .k07, 32 of other kinds")


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    for at in range(3):
        write(tmp_path / f"IMG_{at}.HEIC", "a photo of a telephone")
    with pytest.raises(ValueError, match=r"holds no image \(it holds 3 \.heic\); images end in"):
        index_folder(tmp_path)


def test_a_loop_of_links_ends_and_finds_each_image_once(tmp_path: Path) -> None:
    save_pictures(tmp_path / "a", [(10, 8)] * 2)
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "c").symlink_to(tmp_path / "c")
    with ends_within(20):
        images = index_folder(tmp_path)
    assert len(images.index) == 2
    assert images.ignored == "2 folders that are linked again, 1 other"


def test_links_to_images_are_images(tmp_path: Path) -> None:
    save_pictures(tmp_path / "store", [(10, 8)] * 2)
    for label in ("a", "b"):
        (tmp_path / "set" / label).mkdir(parents=True)
        (tmp_path / "set" / label / "x.jpg").symlink_to(tmp_path / "store" / "0.jpg")
    assert len(index_folder(tmp_path / "set").index) == 2
    (tmp_path / "set" / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(ValueError, match=r"gone\.jpg: it cannot be read: No such file"):
        index_folder(tmp_path / "set")


def test_pipes_and_devices_are_never_opened(tmp_path: Path) -> None:
    save_pictures(tmp_path, [(10, 8)])
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with ends_within(20):
        assert index_folder(tmp_path).ignored == "2 pipes or devices"
        with pytest.raises(Unreadable, match="no regular file"):
            size_of_file(tmp_path / "pipe.jpg")
        with pytest.raises(ValueError, match=r"zero\.png: it cannot be read: no regular"):
            index_named([tmp_path / "zero.png"])
        with pytest.raises(OSError, match="no regular file"):
            FileStore(tmp_path, Names.of(["pipe.jpg"])).read(0)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for label in ("a", "b", "c"):
        save_pictures(tmp_path / label, [(10, 8)] * 4)
    return tmp_path


def test_no_more_is_read_than_the_first_rows_need(folders: Path) -> None:
    write(folders / "c" / "0.jpg", "damaged, and not looked at")
    found = []
    listing = list_folder(folders, "train", at_most=6, progress=found.append)
    assert (len(listing), listing.is_whole, sum(found)) == (6, False, 6)
    images = index_folder(folders, limit=6)
    assert len(images.index) == 6
    assert images.class_names == ("a", "b", "c")
    assert images.labels_N is not None
    assert images.labels_N.tolist() == [0] * 4 + [1] * 2


def test_a_limit_counts_good_images(folders: Path) -> None:
    for name in ("a/1.jpg", "b/0.jpg", "b/1.jpg"):
        write(folders / name, "damaged")
    images = index_folder(folders, "skip", limit=6)
    wanted = ["a/0.jpg", "a/2.jpg", "a/3.jpg", "b/2.jpg", "b/3.jpg", "c/0.jpg"]
    assert list(images.index.store.names) == wanted
    assert len(images.left_out) == 3


def test_a_run_of_the_first_rows_knows_its_images_by_the_hash_of_before(folders: Path) -> None:
    before = index_folder(folders).first(6).index.content_hash
    index = index_folder(folders, limit=6).index
    assert index.content_hash != before
    assert index.holds(before)
    assert not index.holds(index_folder(folders).first(5).index.content_hash)
    save(folders / "c" / "zz.png", picture())
    assert not index_folder(folders, limit=6).index.holds(before)
    assert index_folder(folders, limit=6).index.holds(index.content_hash)


def test_a_limit_above_all_rows_changes_no_hash(folders: Path) -> None:
    whole = index_folder(folders).index
    assert index_folder(folders, limit=12).index.content_hash == whole.content_hash
    assert index_folder(folders, limit=500).index.content_hash == whole.content_hash
