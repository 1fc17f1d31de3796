"""Only regular files are opened; nothing else is followed or waited for."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from and_dist.utils import plain_files
from and_dist.utils.plain_files import (
    NotPlainError,
    Piece,
    check_regular,
    open_plain,
    open_regular,
    read_plain,
    read_regular,
)


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("Grüße")
    assert read_plain(tmp_path / "file") == "Grüße"
    with open_plain(tmp_path / "file") as file:
        assert file.readline() == "Grüße".encode()


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.symlink_to(__file__),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path.with_name("nowhere")),
        os.mkfifo,
        Path.mkdir,
    ],
    ids=["link", "link to a device", "link to nothing", "pipe", "folder"],
)
def test_nothing_else_is(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "place")
    with pytest.raises(NotPlainError, match="it is no regular file"):
        open_plain(tmp_path / "place")


def test_a_device_is_not_read() -> None:
    with pytest.raises(NotPlainError, match="it is no regular file"):
        read_plain(Path("/dev/zero"))


def test_what_is_missing_or_no_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"a\xff")
    with pytest.raises(UnicodeDecodeError):
        read_plain(tmp_path / "file")
    assert read_plain(tmp_path / "file", "replace") == "a\ufffd"


def test_what_is_too_large_to_be_ours_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_files, "MOST_BYTES", 10)
    (tmp_path / "file").write_bytes(b"x" * 10)
    assert read_plain(tmp_path / "file") == "x" * 10
    (tmp_path / "file").write_bytes(b"x" * 11)
    with pytest.raises(OSError, match="it has more than 1e-05 MB"):
        read_plain(tmp_path / "file")


def test_a_source_may_be_a_link_and_has_a_bounded_length(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 7) == b"content"
    assert check_regular(tmp_path / "link") == 7
    os.truncate(tmp_path / "file", 10**12)
    with pytest.raises(OSError, match="it has more than 100 MB"):
        read_regular(tmp_path / "link")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_a_source_that_is_no_file_is_not_waited_for(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "place")
    for opened in (read_regular, check_regular, open_regular):
        with pytest.raises(NotPlainError, match="no regular file"):
            opened(tmp_path / "place")


def test_a_piece_is_read_as_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    descriptor, _ = open_regular(tmp_path / "file")
    piece = Piece(descriptor, 2, 6)
    with io.BufferedReader(piece) as file:
        assert file.read(2) == b"23"
        file.seek(-1, os.SEEK_END)
        assert file.read() == b"7"
        assert file.seek(1) == 1
        assert file.read(99) == b"34567"
        assert piece.read_at(5, 9) == b"7"
        assert piece.read_at(7, 9) == b""
        with pytest.raises(OSError, match="before the first one"):
            piece.seek(-1)
    os.close(descriptor)
