"""prepare() beside what a user has: sources are only read, and results replace nothing but ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from and_dist.data.index import open_manifest
from and_dist.data.manifest import MANIFEST
from and_dist.data.preparation.prepare import refuse_overlap
from and_dist.data.transcode import PackOptions
from and_dist.utils.owned_files import NotOursError
from tests.end_to_end.processes import fill_up
from tests.other_user import as_nobody
from tests.pictures import files_of, save_pictures
from tests.suites import skip_without
from tests.unit.data.preparing import encoded, run

FORMS = [PackOptions(), PackOptions(pack=True), PackOptions(raw=9)]


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in files_of(folder)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """photos/train/a/0.jpg and so on, the only copy there is."""
    save_pictures(tmp_path / "photos" / "train", [(24, 18)] * 4, "ab", ["jpg"])
    return tmp_path / "photos"


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize(
    ("source", "out", "relation"),
    [
        ("photos", "photos", "is"),
        ("photos", "link", "is"),
        ("link", "photos", "is"),
        ("photos", "photos/../photos", "is"),
        ("photos", "photos/prepared", "lies in"),
        ("photos", "link/new/prepared", "lies in"),
        ("photos/train", "photos", "contains"),
        ("photos/train", "link", "contains"),
        ("photos/train", "photos/train", "is"),
    ],
)
def test_out_that_meets_the_source_is_refused(
    tmp_path: Path, photos: Path, options: PackOptions, source: str, out: str, relation: str
) -> None:
    (tmp_path / "link").symlink_to(photos)
    before = content_of(photos)
    with pytest.raises(NotOursError, match=rf"--out \S+ {relation} the source \S+, which is only"):
        run(tmp_path / source, tmp_path / out, options)
    assert content_of(photos) == before
    assert os.listdir(photos) == ["train"]


def test_names_that_differ_in_case_alone_are_one_folder_where_the_disk_says_so(
    tmp_path: Path, photos: Path
) -> None:
    """A bind mount gives one folder two names, as such a disk does."""
    if os.geteuid() != 0:
        skip_without("root")
    other = tmp_path / "PHOTOS"
    other.mkdir()
    subprocess.run(["mount", "--bind", photos, other], check=True)
    try:
        for source, out in ((photos, other), (photos / "train", other), (other, photos / "new")):
            with pytest.raises(NotOursError, match="which is only read"):
                refuse_overlap(source, out)
    finally:
        subprocess.run(["umount", other], check=True)


@pytest.mark.parametrize("options", FORMS)
def test_a_split_of_images_in_out_is_refused_and_stays(
    photos: Path, source: Path, options: PackOptions
) -> None:
    before = content_of(photos)
    with pytest.raises(NotOursError, match=r"photos/train was not written by and-dist, it holds a"):
        run(source, photos, options)
    assert content_of(photos) == before


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("name", ["notes.txt", "labels.npy", "00000.tar"])
def test_a_split_of_ours_with_a_file_of_a_users_is_refused_and_stays(
    tmp_path: Path, source: Path, options: PackOptions, name: str
) -> None:
    run(source, tmp_path / "out", options)
    (tmp_path / "out" / "train" / name).write_bytes(b"edited by hand")
    before = content_of(tmp_path / "out")
    with pytest.raises(NotOursError, match=rf"it holds {name}"):
        run(source, tmp_path / "out", PackOptions())
    assert content_of(tmp_path / "out") == before


def as_of_an_earlier_revision(split: Path) -> None:
    """A manifest that names no files, and its pack in a folder of its own."""
    about = json.loads((split / MANIFEST).read_text())
    for key in ("holds", "sums", "crc"):
        del about[key]
    pack = split.with_name(f"{split.name}.pack")
    if "files" in about:
        pack.mkdir()
        for name in about["files"]:
            (split / name).rename(pack / name)
        about["files"] = [f"../{pack.name}/{name}" for name in about["files"]]
    (split / MANIFEST).write_text(json.dumps(about))


@pytest.mark.parametrize("options", FORMS)
def test_a_set_of_an_earlier_revision_is_read_and_replaced(
    tmp_path: Path, source: Path, options: PackOptions
) -> None:
    images = encoded(run(source, tmp_path / "out", options))
    as_of_an_earlier_revision(tmp_path / "out" / "train")
    assert encoded(open_manifest(tmp_path / "out" / "train")) == images
    run(source, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["train"]


def test_what_lies_beside_the_pack_of_an_earlier_revision_stays(
    tmp_path: Path, source: Path
) -> None:
    run(source, tmp_path / "out", PackOptions(pack=True))
    as_of_an_earlier_revision(tmp_path / "out" / "train")
    (tmp_path / "out" / "train.pack" / "00001.tar").write_bytes(b"somebody's shard")
    run(source, tmp_path / "out")
    assert os.listdir(tmp_path / "out" / "train.pack") == ["00001.tar"]


def test_shards_of_a_users_in_such_a_folder_stay(tmp_path: Path, source: Path) -> None:
    """An earlier revision made manifests of shards that lay in OUT."""
    shards = tmp_path / "shards"
    shards.mkdir()
    subprocess.run(["tar", "-C", source, "-cf", shards / "00000.tar", "a", "b", "c"], check=True)
    run(shards, tmp_path / "out")
    shutil.move(shards, tmp_path / "out" / "train.pack")
    manifest = tmp_path / "out" / "train" / MANIFEST
    about = json.loads(manifest.read_text())
    for key in ("holds", "sums", "crc"):
        del about[key]
    manifest.write_text(json.dumps(about | {"files": ["../train.pack/00000.tar"]}))
    before = content_of(tmp_path / "out" / "train.pack")
    run(source, tmp_path / "out", PackOptions(pack=True))
    assert content_of(tmp_path / "out" / "train.pack") == before


@pytest.mark.parametrize("options", FORMS)
def test_a_disk_that_fills_up_leaves_what_was_there_and_nothing_else(
    small_disk: Path, source: Path, options: PackOptions
) -> None:
    out = small_disk / "out"
    images = encoded(run(source, out))
    before = content_of(out)
    fill_up(small_disk / "ballast")
    os.truncate(small_disk / "ballast", (small_disk / "ballast").stat().st_size - 6 * 4096)
    with pytest.raises(
        RuntimeError, match=r"preparing \S+/out failed and left it as it was: .*No sp"
    ):
        run(source, out, options)
    with pytest.raises(RuntimeError, match="No space left"):
        run(source, small_disk / "new", options)
    assert content_of(out) == before
    assert encoded(open_manifest(out / "train")) == images
    assert sorted(os.listdir(small_disk)) == ["ballast", "out"]


def test_a_full_disk_and_a_read_only_one_are_refused_before_the_source_is_read(
    small_disk: Path, source: Path
) -> None:
    fill_up(small_disk / "ballast")
    with pytest.raises(ValueError, match="cannot be written: no room is left on the disk"):
        run(source, small_disk / "out")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(ValueError, match=r"cannot be written: the disk of \S+ is read-only"):
        run(source, small_disk / "out")


def test_out_that_does_not_let_this_user_write_is_refused(tmp_path: Path, source: Path) -> None:
    (locked := tmp_path / "locked").mkdir(mode=0o555)
    sentence = r"--out \S+ cannot be written: \S+ does not let"
    with as_nobody(tmp_path), pytest.raises(ValueError, match=sentence):
        run(source, locked / "out")
    assert not (locked / "out").exists()


def test_out_that_is_a_file_is_refused_and_stays(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").write_text("theirs")
    with pytest.raises(ValueError, match=r"out is not a folder"):
        run(source, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "theirs"
