"""A file takes a name that is free or ours, whole or not at all, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from and_dist.utils import owned_files
from and_dist.utils.owned_files import (
    NewFile,
    NotOursError,
    always,
    check_output,
    check_writable,
    create_file,
    is_json_with,
    open_new,
    open_to_append,
    remove_file,
    starts_with,
    write_file,
)

is_ours = starts_with("ours")


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def no_hard_links(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "this file system has no hard links")


@pytest.fixture(params=["hard links", "no hard links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no hard links":
        monkeypatch.setattr(os, "link", no_hard_links)


@pytest.mark.usefixtures("links")
def test_a_file_is_written_where_nothing_is_and_over_one_of_ours(tmp_path: Path) -> None:
    for text in ("ours, first", "ours, second"):
        write_file(tmp_path / "a.txt", text, is_ours)
        assert (tmp_path / "a.txt").read_text() == text
    assert listing(tmp_path) == ["a.txt"]


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize("rule", [is_ours, owned_files.never])
def test_a_file_of_somebody_elses_is_refused_and_stays(
    tmp_path: Path, rule: owned_files.IsOurs
) -> None:
    (tmp_path / "a.txt").write_text("theirs")
    with pytest.raises(NotOursError, match=r"a\.txt exists and was not written by and-dist"):
        write_file(tmp_path / "a.txt", "ours", rule)
    assert (tmp_path / "a.txt").read_text() == "theirs"
    assert listing(tmp_path) == ["a.txt"]


@pytest.mark.usefixtures("links")
def test_a_file_that_comes_meanwhile_stays(tmp_path: Path) -> None:
    new = NewFile(tmp_path / "a.txt", is_ours)
    (tmp_path / "a.txt").write_text("theirs")
    with pytest.raises(NotOursError):
        new.publish()
    new.discard()
    assert (tmp_path / "a.txt").read_text() == "theirs"
    assert listing(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe"])
def test_what_is_no_file_is_refused_even_by_force(tmp_path: Path, kind: str) -> None:
    place, target = tmp_path / "a.txt", tmp_path / "target"
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        if kind == "link":
            target.write_text("theirs")
        place.symlink_to(target)
    before = place.lstat()
    with pytest.raises(NotOursError, match=r"a\.txt is a "):
        write_file(place, "ours", always)
    with pytest.raises(NotOursError, match="--out takes the name of a file"):
        check_output(place, "--out", always)
    with pytest.raises(NotOursError):
        open_to_append(place, always)
    assert place.lstat() == before
    assert not target.exists() or target.read_text() == "theirs"


def test_a_block_that_fails_leaves_nothing_and_the_old_file(tmp_path: Path) -> None:
    write_file(tmp_path / "a.txt", "ours, first")
    with suppress(KeyError), open_new(tmp_path / "a.txt", is_ours) as file:
        file.write(b"ours, second")
        raise KeyError
    assert (tmp_path / "a.txt").read_text() == "ours, first"
    assert listing(tmp_path) == ["a.txt"]


@pytest.mark.whole_run
def test_a_killed_writer_leaves_what_the_next_one_removes(tmp_path: Path) -> None:
    killed = (
        "import os, sys; from pathlib import Path; from and_dist.utils.owned_files import NewFile;"
        "NewFile(Path(sys.argv[1])).file.write(b'half'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", killed, tmp_path / "a.txt"], check=False)
    (left,) = listing(tmp_path)
    assert left.endswith(".unfinished")
    living = NewFile(tmp_path / "a.txt")
    assert listing(tmp_path) == [living.temporary.name]
    write_file(tmp_path / "a.txt", "ours")
    assert listing(tmp_path) == sorted([living.temporary.name, "a.txt"])
    living.discard()


def test_only_one_process_creates_a_file(tmp_path: Path) -> None:
    assert create_file(tmp_path / "decided", "")
    assert not create_file(tmp_path / "decided", "")


def test_a_growing_file_is_new_or_empty_or_ours(tmp_path: Path) -> None:
    for _ in range(2):
        with open_to_append(tmp_path / "log", is_ours) as file:
            file.write(b"ours\n")
    assert (tmp_path / "log").read_text() == "ours\nours\n"
    (tmp_path / "log").write_text("theirs\n")
    with pytest.raises(NotOursError):
        open_to_append(tmp_path / "log", is_ours)


def test_a_file_is_removed_only_if_it_is_ours(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("ours")
    (tmp_path / "b").write_text("theirs")
    (tmp_path / "c").symlink_to(tmp_path / "a")
    assert [remove_file(tmp_path / name, is_ours) for name in "cbad"] == [False, False, True, False]
    assert listing(tmp_path) == ["b", "c"]


def test_a_file_that_takes_the_place_of_ours_meanwhile_is_put_back(tmp_path: Path) -> None:
    answers = iter([True, False])
    (tmp_path / "a").write_text("theirs")
    assert not remove_file(tmp_path / "a", lambda _: next(answers))
    assert (tmp_path / "a").read_text() == "theirs"
    assert listing(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("text", "is_known"),
    [
        ('{"host": 1, "pid": 2}', True),
        ('[{"host": 1, "pid": 2}]', True),
        ('{"host": 1}', False),
        ("[]", False),
        ("7", False),
        ("notes", False),
        ("\udcff", False),
    ],
)
def test_json_of_ours_is_known_by_its_keys(tmp_path: Path, text: str, is_known: bool) -> None:
    (tmp_path / "a").write_text(text, errors="surrogateescape")
    assert is_json_with("host", "pid")(tmp_path / "a") == is_known


def test_long_names_have_temporary_ones(tmp_path: Path) -> None:
    write_file(tmp_path / ("ä" * 127), "ours")
    assert listing(tmp_path) == ["ä" * 127]


def test_an_output_that_exists_needs_force(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("theirs")
    with pytest.raises(NotOursError, match=r"a\.html exists: choose another --out, or add --force"):
        check_output(tmp_path / "a.html", "--out", owned_files.never)
    check_output(tmp_path / "a.html", "--out", always)
    check_output(tmp_path / "new" / "b.html", "--out", owned_files.never)


def test_a_folder_that_is_a_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--out x cannot be written: .*file is not a folder"):
        check_writable(tmp_path / "file" / "new", "--out x")
