"""What a disk refuses is said with its path and its room, and travels between processes."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from pathlib import Path

import pytest

from and_dist.utils.disk_errors import DiskError, naming_disk
from and_dist.utils.owned_files import memory_file, open_to_append, write_file
from and_dist.utils.owned_folders import copy_tree
from tests.end_to_end.processes import fill_up


def refuse(path: Path, error: Exception, needed: int | None = None) -> str:
    with pytest.raises(DiskError) as raised, naming_disk(path, needed):
        raise error
    return str(raised.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_without_room_says_where_what_it_takes_and_what_is_left(
    tmp_path: Path, number: int
) -> None:
    said = refuse(tmp_path / "a" / "b", OSError(number, "any words"), 12_345)
    assert said.startswith(f"{tmp_path}/a/b cannot be written: {os.strerror(number)}; ")
    assert "it takes 12.3 kB, and its disk has " in said
    assert said.endswith(" left")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_a_broken_disk_says_where(tmp_path: Path, number: int) -> None:
    said = refuse(tmp_path / "a", OSError(number, "any words"), 12_345)
    assert said == f"{tmp_path}/a cannot be written: {os.strerror(number)}"


def test_errors_of_libraries_are_told_by_the_words_of_the_system(tmp_path: Path) -> None:
    for error in (
        RuntimeError("I/O error: No space left on device (os error 28)"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]),
    ):
        assert "No space left on device; its disk has" in refuse(tmp_path / "a", error)


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), ValueError("no"), KeyError("no")])
def test_other_errors_stay_as_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as raised, naming_disk(tmp_path):
        raise error
    assert raised.value is error


def test_a_folder_that_is_being_built_is_called_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / ".r00-e0001.0123456789abcdef.building" / "state.json"
    assert "/r00-e0001/state.json cannot be written" in refuse(path, OSError(errno.EIO, ""))


def test_the_error_keeps_its_message_on_its_way_between_processes() -> None:
    assert str(pickle.loads(pickle.dumps(DiskError("a cannot be written")))) == (
        "a cannot be written"
    )


def test_a_full_disk_is_named_by_whatever_writes_and_nothing_is_left(small_disk: Path) -> None:
    (source := small_disk.with_name("source")).mkdir()
    (source / "a.py").write_bytes(bytes(5000))
    file = open_to_append(small_disk / "log", lambda _: True)
    fill_up(small_disk / "ballast")
    for write in (
        lambda: write_file(small_disk / "a", bytes(9_000)),
        lambda: copy_tree(source, small_disk / "code"),
        lambda: memory_file(small_disk, 9_000).__enter__(),
    ):
        with pytest.raises(DiskError, match=r"No space left on device; .*its disk has 0 B left"):
            write()
    file.close()
    assert not [name for name in os.listdir(small_disk) if name.endswith(".unfinished")]


def test_a_memory_file_has_no_name() -> None:
    with memory_file(Path("/dev/shm"), 5) as path:
        assert path.stat().st_nlink == 0
        with path.open("r+b") as file:
            assert file.read() == bytes(5)
        path.write_bytes(b"there")
        assert path.read_bytes() == b"there"
