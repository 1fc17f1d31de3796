"""Only regular files are opened; nothing else is followed or waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from and_dist.utils import plain_files
from and_dist.utils.plain_files import NotPlainError, open_plain, read_plain


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
