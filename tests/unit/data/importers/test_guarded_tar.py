"""Tars that state more than they have, or than anybody has, are refused before it is read."""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path

import pytest

from and_dist.data.importers import guarded_tar
from and_dist.data.importers.archives import read_members
from and_dist.data.importers.guarded_tar import members_of, open_packed_tar
from tests.attack.source_pieces import base256, tar_block, tar_file
from tests.pictures import encode, tar_of, write


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (tar_block(b"x", base256(10**11), b"x"), "states a piece of 100,000,000,"),
        (tar_block(b"x", base256(10**11), b"L"), "states a piece of 100,000,000,"),
        (tar_block(b"x", base256(-512), b"L"), "states"),
        (tar_block(b"0.jpg", base256(-512)), "states -512 bytes|states a piece|cut short"),
        (tar_block(b"0.jpg", base256(10**14)), "states 100,000,000,"),
    ],
)
def test_a_header_that_states_too_much_is_named(
    tmp_path: Path, header: bytes, sentence: str
) -> None:
    path = write(tmp_path / "a.tar", header + tar_of({"1.jpg": encode(0)}))
    os.truncate(path, 10**12)
    with pytest.raises(ValueError, match=rf"a\.tar cannot be read to its end: .*({sentence})"):
        read_members(path)


def test_a_sparse_member_is_named(tmp_path: Path) -> None:
    content = tar_file({"0.jpg": (tarfile.GNUTYPE_SPARSE, encode(0)), "1.jpg": (b"0", encode(1))})
    with pytest.raises(ValueError, match=r"'0\.jpg' is stored as a sparse file"):
        read_members(write(tmp_path / "a.tar", content))


def test_no_more_is_unpacked_than_is_allowed(tmp_path: Path) -> None:
    tar = tar_of({"a": bytes(500), "b": bytes(9000), "c": b"end"})
    path = write(tmp_path / "a.tar.gz", gzip.compress(tar))
    with open_packed_tar(path, len(tar)) as archive:
        assert [info.name for info in members_of(archive)] == ["a", "b", "c"]
    with (
        pytest.raises(tarfile.ReadError, match="it states"),
        open_packed_tar(path, 9000) as archive,
    ):
        list(members_of(archive))


def test_a_name_may_be_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tar", tar_of({"d/" * 400 + "1.jpg": encode(0)}))
    assert read_members(path)[0].name.endswith("1.jpg")
    monkeypatch.setattr(guarded_tar, "MOST_HEADER_BYTES", 600)
    with pytest.raises(ValueError, match="states a piece of"):
        read_members(path)
