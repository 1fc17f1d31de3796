"""Manifests on disk: mapped, movable, and named where they are none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from and_dist.data.index import open_manifest
from and_dist.data.stores import ArchiveStore, FileStore
from and_dist.data.transcode import PackOptions
from tests.unit.data.preparing import encoded, run


def is_mapped(column: np.ndarray | None) -> bool:
    while column is not None and not isinstance(column, np.memmap):
        column = column.base
    return column is not None


@pytest.mark.parametrize("options", [PackOptions(), PackOptions(pack=True), PackOptions(raw=8)])
def test_a_manifest_is_mapped_not_read(tmp_path: Path, source: Path, options: PackOptions) -> None:
    images = run(source, tmp_path / "out", options)
    store = images.index.store
    columns = [images.index.heights_N, images.index.widths_N]
    if isinstance(store, FileStore):
        columns += [store.names.text, store.names.ends]
    else:
        assert isinstance(store, ArchiveStore)
        columns += [store.file_N, store.offset_N, store.length_N]
    assert all(isinstance(column, np.memmap) for column in columns)
    assert is_mapped(images.labels_N)


def test_what_is_no_manifest_is_named(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ValueError, match=f"manifest {tmp_path}/none cannot be read"):
        open_manifest(tmp_path / "none")
    run(source, tmp_path / "out")
    (tmp_path / "out" / "train" / "widths.npy").unlink()
    with pytest.raises(ValueError, match=r"out/train cannot be read: .*widths"):
        open_manifest(tmp_path / "out" / "train")
    (tmp_path / "out" / "train" / "manifest.json").write_text('{"format": 7}')
    with pytest.raises(ValueError, match="of format 7, this program reads 1"):
        open_manifest(tmp_path / "out" / "train")


@pytest.mark.parametrize("options", [PackOptions(pack=True), PackOptions(raw=16)])
def test_a_pack_can_be_moved_and_outlives_its_source(
    tmp_path: Path, source: Path, options: PackOptions
) -> None:
    before = encoded(run(source, tmp_path / "out", options))
    shutil.move(tmp_path / "out", tmp_path / "elsewhere" / "deep")
    shutil.rmtree(source)
    assert encoded(open_manifest(tmp_path / "elsewhere" / "deep" / "train")) == before


def test_an_image_that_is_cut_off_with_its_pack_is_named(tmp_path: Path, source: Path) -> None:
    images = run(source, tmp_path / "out", PackOptions(pack=True))
    os.truncate(tmp_path / "out" / "train" / "00000.tar", 3000)
    with pytest.raises(OSError, match=r"00000\.tar ends before byte"):
        encoded(images)
