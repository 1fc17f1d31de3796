"""A folder takes the place of one of ours, whole or not at all; others are refused and stay."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

import pytest

from and_dist.data.processes import open_processes
from and_dist.utils import owned_folders
from and_dist.utils.folder_names import MARK, Named, entries_of
from and_dist.utils.output_folders import publish_files
from and_dist.utils.owned_files import NotOursError, always, never, write_file
from and_dist.utils.owned_folders import NewFolder, remove_folder, remove_tree, restore_folder

CONTENTS = Named(r"manifest|\d+\.tar")
FINGERPRINT = "0123456789abcdef"


def owned_names(folder: Path) -> Container[str] | None:
    return CONTENTS if (folder / "manifest").exists() else None


def build(target: Path, text: str, fingerprint: str | None = None) -> NewFolder:
    building = NewFolder(target, owned_names, CONTENTS, fingerprint)
    write_file(building.path / "manifest", text, always)
    return building


@pytest.fixture(params=["exchange", "two renames"])
def renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "two renames":
        monkeypatch.setattr(owned_folders, "_exchange", lambda *_: False)


@pytest.mark.usefixtures("renames")
def test_a_folder_takes_its_place_and_that_of_ours(tmp_path: Path) -> None:
    for text in ("first", "second"):
        build(tmp_path / "new" / "train", text).publish()
        assert entries_of(tmp_path) == ["new/train/manifest"]
        assert (tmp_path / "new" / "train" / "manifest").read_text() == text


@pytest.mark.parametrize("name", ["notes.txt", ".keep", "zz/cat.jpg", "empty/", "1.tar/cat.jpg"])
def test_a_folder_with_something_else_in_it_is_refused_and_stays(tmp_path: Path, name: str) -> None:
    target = tmp_path / "train"
    build(target, "first").publish()
    place = target / name
    place.parent.mkdir(exist_ok=True)
    place.mkdir() if name.endswith("/") else place.write_text("theirs")
    with pytest.raises(NotOursError, match=rf"train was not written by and-dist, it holds {name}"):
        build(target, "second")
    assert entries_of(tmp_path) == sorted(["train/manifest", f"train/{name}"])
    assert not remove_folder(target, owned_names)


def test_what_comes_while_a_folder_is_built_stays(tmp_path: Path) -> None:
    target = tmp_path / "train"
    building = build(target, "ours")
    target.mkdir()
    (target / "cat.jpg").write_text("theirs")
    with pytest.raises(NotOursError, match=r"it holds cat\.jpg"):
        building.publish()
    building.discard()
    assert entries_of(tmp_path) == ["train/cat.jpg"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_is_refused(tmp_path: Path, kind: str) -> None:
    build(tmp_path / "other", "theirs").publish()
    if kind == "file":
        (tmp_path / "train").write_text("theirs")
    else:
        (tmp_path / "train").symlink_to(tmp_path / "other")
    with pytest.raises(NotOursError, match=f"train is a {kind}"):
        build(tmp_path / "train", "ours")
    assert (tmp_path / "other" / "manifest").read_text() == "theirs"


def test_a_discarded_folder_leaves_nothing(tmp_path: Path) -> None:
    build(tmp_path / "a" / "b" / "train", "ours").discard()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_left_is_taken_up_by_the_same_command_alone(tmp_path: Path) -> None:
    target = tmp_path / "train"
    first = build(target, "half", FINGERPRINT)
    with pytest.raises(RuntimeError, match="train is being built by another process"):
        build(target, "same", FINGERPRINT)
    first.leave()
    again = NewFolder(target, owned_names, CONTENTS, FINGERPRINT)
    assert (again.path / "manifest").read_text() == "half"
    again.leave()
    other = build(target, "other")
    assert (again.path / "manifest").exists(), "a failure of the other command must not cost it"
    other.publish()
    assert entries_of(tmp_path) == ["train/manifest"]


def test_a_folder_that_was_left_and_holds_something_else_is_refused(tmp_path: Path) -> None:
    first = build(tmp_path / "train", "half", FINGERPRINT)
    first.leave()
    (first.path / "notes.txt").write_text("theirs")
    with pytest.raises(NotOursError, match=r"is not as and-dist left it, it holds notes\.txt"):
        build(tmp_path / "train", "again", FINGERPRINT)
    build(tmp_path / "train", "other").publish()
    assert (first.path / "notes.txt").read_text() == "theirs"


def kill_between(tmp_path: Path, call: str) -> None:
    """Replace `first` by `second`, and end after a call of the owner's."""
    program = f"""
import os, sys
from pathlib import Path
from and_dist.utils import owned_folders
from tests.unit.utils.test_owned_folders import build
before = owned_folders.{call}
def ending(*arguments):
    before(*arguments)
    os._exit(9)
owned_folders._exchange = lambda *_: False
building = build(Path(sys.argv[1]), "second")
owned_folders.{call} = ending
building.publish()
"""
    subprocess.run([sys.executable, "-c", program, tmp_path / "train"], check=False)


def test_between_two_renames_the_old_folder_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "train"
    build(target, "first").publish()
    monkeypatch.setattr(owned_folders, "_exchange", lambda *_: False)
    target.rename(tmp_path / f".train.{FINGERPRINT}.replaced")
    restore_folder(target, owned_names, CONTENTS)
    assert (target / "manifest").read_text() == "first"
    assert entries_of(tmp_path) == ["train/manifest"]


@pytest.mark.whole_run
@pytest.mark.parametrize("call", ["flush_folder", "_change_places", "_remove_known"])
def test_a_kill_leaves_the_old_folder_or_the_new_one(tmp_path: Path, call: str) -> None:
    target = tmp_path / "train"
    build(target, "first").publish()
    kill_between(tmp_path, call)
    assert (target / "manifest").read_text() in ("first", "second")
    build(target, "third").publish()
    assert entries_of(tmp_path) == ["train/manifest"]


def test_a_mark_of_somebody_elses_is_a_file_like_others(tmp_path: Path) -> None:
    build(tmp_path / "train", "first").publish()
    (tmp_path / "train" / MARK).write_text("theirs")
    with pytest.raises(NotOursError, match=f"it holds {MARK}"):
        build(tmp_path / "train", "second")


def test_files_of_libraries_are_published_together_or_not_at_all(tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("a", "b")}
    with publish_files(places) as folder:
        for name in places:
            (folder / name).write_text("ours")
    assert entries_of(tmp_path) == ["a", "b"]
    with pytest.raises(NotOursError), publish_files(places, never) as folder:
        pytest.fail("it may not come to writing")
    with suppress(KeyError), publish_files(places, always) as folder:
        (folder / "a").write_text("half")
        raise KeyError
    assert entries_of(tmp_path) == ["a", "b"]
    assert (tmp_path / "a").read_text() == "ours"


def test_a_tree_loses_our_files_and_keeps_the_others(tmp_path: Path) -> None:
    for name in ("job/code/a.py", "job/log", "job/code/notes.txt", "job/empty/b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    remove_tree(tmp_path / "job", Named(r".*\.py|log"))
    assert entries_of(tmp_path) == ["job/code/notes.txt"]


def publish_often(folder: Path, writer: int) -> list[str]:
    """The errors of 60 files that this process published."""
    failed = []
    for number in range(60):
        name = f"{writer}-{number}.txt"
        try:
            with publish_files({name: folder / name}) as building:
                (building / name).write_text(name)
        except (OSError, RuntimeError) as error:
            failed.append(f"{type(error).__name__}: {error}")
    return failed


def test_processes_publish_into_one_folder_beside_each_other(tmp_path: Path) -> None:
    """As ranks do with their profiles: one that tidies up takes no other's folder for abandoned."""
    with open_processes(3) as pool:
        writers = [pool.submit(publish_often, tmp_path / "out", writer) for writer in range(3)]
    assert [writer.result() for writer in writers] == [[], [], []]
    assert len(list((tmp_path / "out").iterdir())) == 180
