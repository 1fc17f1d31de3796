"""prepare() with a silent reporter, and what stands in the images it gives back."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Literal

import numpy as np

from and_dist.data.index import LabelledImages, open_manifest
from and_dist.data.preparation.prepare import Check, Job, prepare
from and_dist.data.stores import ArchiveStore, FileStore
from and_dist.data.transcode import PackOptions

SIZES = [(40, 30), (20, 50), (16, 16), (64, 33), (9, 70), (31, 32)]
"""(width, height) of the images of the fixture `source`."""


class Silent:
    def start(self, what: str, total: int) -> None: ...

    def advance(self, count: int) -> None: ...


def run(
    source: Path,
    out: Path,
    options: PackOptions | None = None,
    bad_images: Literal["stop", "skip"] = "stop",
    check: Check | None = None,
    workers: int = 1,
) -> LabelledImages:
    """The training split, as it lies on disk."""
    options = options or PackOptions()
    prepared = prepare(Job(source, out, options, bad_images, workers, Silent()), check)
    assert list(prepared) == ["train"]
    return open_manifest(out / "train")


def labels(images: LabelledImages) -> list[int]:
    assert images.labels_N is not None
    return list(images.labels_N.tolist())


def encoded(images: LabelledImages) -> list[bytes]:
    store = images.index.store
    assert isinstance(store, FileStore | ArchiveStore)
    return [store.read(row) for row in range(len(images.index))]


def pixels(images: LabelledImages, row: int) -> np.ndarray:
    """Of a row of a raw pack."""
    assert images.index.store.kind == "pixels"
    return np.frombuffer(encoded(images)[row], np.uint8).reshape(*sides(images)[row], 3)


def sides(images: LabelledImages) -> list[tuple[int, int]]:
    """(height, width) by row."""
    index = images.index
    return list(zip(index.heights_N.tolist(), index.widths_N.tolist(), strict=True))


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other).mean())


def tar_members(folder: Path) -> list[tuple[str, bytes]]:
    """(name, content) of everything in the tars of a folder."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for info in archive:
                file = archive.extractfile(info)
                assert file is not None
                found.append((info.name, file.read()))
    return found
