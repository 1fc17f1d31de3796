"""Draw images with the detail of photographs: JPEGs of 500 x 375, about 80 kB, like ImageNet's."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from and_dist.data.index import LabelledImages, index_archive, index_files, save_manifest
from and_dist.data.shapes import draw_shapes
from and_dist.data.stores import ArchiveStore, MemoryStore, Names


def photos(count: int) -> list[bytes]:
    """Return the content of JPEG files, the same in every run."""
    random = np.random.default_rng(0)
    return [_photo(random) for _ in range(count)]


def write_photos(folder: Path, count: int) -> None:
    """Write JPEG files into a new folder."""
    folder.mkdir(parents=True)
    for number, content in enumerate(photos(count)):
        (folder / f"{number:05}.jpg").write_bytes(content)


def _photo(random: np.random.Generator) -> bytes:
    coarse = Image.fromarray(random.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
    fine = random.normal(0, 14, (188, 250, 3)).astype(np.float32).repeat(2, 0).repeat(2, 1)
    pixels = np.clip(smooth + fine[:375, :500], 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


HEIGHT, WIDTH = 375, 500


def prepare_files(folder: Path, rows: int, distinct: int) -> list[Path]:
    """Write JPEG files and a manifest of `rows` rows that repeat them; return the file of each
    row."""
    write_photos(folder / "photos", distinct)
    paths = sorted((folder / "photos").iterdir())
    chosen = [paths[row % distinct] for row in range(rows)]
    length_N = np.resize([path.stat().st_size for path in paths], rows)
    sides = np.full(rows, HEIGHT, np.int32), np.full(rows, WIDTH, np.int32)
    names = Names.of([path.name for path in chosen])
    index = index_files(folder / "photos", names, length_N, *sides)
    save_manifest(LabelledImages(index), folder / "manifest", length_N)
    return chosen


def prepare_shapes(folder: Path, rows: int, distinct: int) -> list[np.ndarray]:
    """Write drawn shapes as raw pixels with a manifest of `rows` rows that repeat them.

    Return the image of each row.
    """
    folder.mkdir(parents=True)
    store = draw_shapes("train", distinct).index.store
    assert isinstance(store, MemoryStore)
    store.block.tofile(folder / "shapes.bin")
    offset_N = np.resize(store.offset_N, rows)
    side_N = np.resize(store.heights_N, rows)
    length_N = 3 * side_N.astype(np.int64) ** 2
    file_N = np.zeros(rows, np.int32)
    packed = ArchiveStore(
        (folder / "shapes.bin",), file_N, offset_N, length_N, side_N, kind="pixels"
    )
    save_manifest(LabelledImages(index_archive(packed, side_N)), folder / "manifest", length_N)
    images = [store.pixels(row) for row in range(distinct)]
    return [images[row % distinct] for row in range(rows)]
