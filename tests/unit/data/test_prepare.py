"""prepare() from a source to what open_manifest gives back, and what is left after it fails."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image, ImageOps

from and_dist.cli import main
from and_dist.data.index import LabelledImages, index_files, open_manifest
from and_dist.data.pack import Packed, PackOptions, target_size, write_pack
from and_dist.data.prepare import Check, Job, prepare
from and_dist.data.stores import ArchiveStore, FileStore, Names
from and_dist.data.verify import find_undecodable

SIZES = [(40, 30), (20, 50), (16, 16), (64, 33), (9, 70), (31, 32)]
"""(width, height) of the images of `source`."""


class Impatient:
    """A reporter at which somebody presses Ctrl-C once the first part of a pack is written."""

    def __init__(self) -> None:
        self._is_packing = False

    def start(self, what: str, total: int) -> None:
        assert total
        self._is_packing = what.endswith("packing")

    def advance(self, count: int) -> None:
        if self._is_packing and count:
            raise KeyboardInterrupt


class Tally:
    """A silent reporter that knows what was announced and what was done."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.done: dict[str, int] = {}

    def start(self, what: str, total: int) -> None:
        self.totals[what], self.done[what] = total, 0

    def advance(self, count: int) -> None:
        self.done[next(reversed(self.done))] += count


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """Smooth, so that a JPEG of it is near to it."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def truncate(path: Path) -> None:
    """A JPEG's headers stay whole, most of its pixels are gone."""
    content = path.read_bytes()
    scan = content.index(b"\xff\xda")
    path.write_bytes(content[: scan + 14 + (len(content) - scan) // 4])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three classes, JPEG and PNG; row n is image n."""
    folder = tmp_path / "source"
    for number, size in enumerate(SIZES):
        name = f"{'abc'[number // 2]}/{number}.{'png' if number == 3 else 'jpg'}"
        save(folder / name, picture(number, size))
    return folder


def files_of(source: Path) -> list[Path]:
    return sorted(path for path in source.rglob("*") if path.is_file())


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
    prepared = prepare(Job(source, out, options, bad_images, workers, Tally()), check)
    assert list(prepared) == ["train"]
    return open_manifest(out / "train")


def labels(images: LabelledImages) -> list[int]:
    assert images.labels_N is not None
    return images.labels_N.tolist()


def encoded(images: LabelledImages) -> list[bytes]:
    store = images.index.store
    assert isinstance(store, FileStore | ArchiveStore)
    return [store.read(row) for row in range(len(images.index))]


def pixels(images: LabelledImages, row: int) -> np.ndarray:
    """Of a row of a raw pack."""
    assert images.index.store.kind == "pixels"
    sides = images.index.heights_N[row], images.index.widths_N[row]
    return np.frombuffer(encoded(images)[row], np.uint8).reshape(*sides, 3)


def sides(images: LabelledImages) -> list[tuple[int, int]]:
    """(height, width) by row."""
    index = images.index
    return list(zip(index.heights_N.tolist(), index.widths_N.tolist(), strict=True))


def is_mapped(column: np.ndarray | None) -> bool:
    while column is not None and not isinstance(column, np.memmap):
        column = column.base
    return column is not None


@pytest.mark.parametrize("workers", [1, 2])
def test_class_folders_become_a_manifest(tmp_path: Path, source: Path, workers: int) -> None:
    tally = Tally()
    job = Job(source, tmp_path / "out", PackOptions(), "stop", workers, tally)
    made = prepare(job)["train"]
    images = open_manifest(tmp_path / "out" / "train")
    assert len(images.index) == len(made.index) == 6
    assert labels(images) == labels(made) == [0, 0, 1, 1, 2, 2]
    assert images.class_names == made.class_names == ("a", "b", "c")
    assert images.index.content_hash == made.index.content_hash
    assert sides(images) == [(height, width) for width, height in SIZES]
    assert encoded(images) == [path.read_bytes() for path in files_of(source)]
    assert tally.totals == tally.done == {"train: reading headers": 6}
    assert not (tmp_path / "out" / "bad_images.txt").exists()


def test_every_split_gets_its_manifest(tmp_path: Path) -> None:
    for name in ("train/a/0.png", "train/b/1.png", "val/b/2.png"):
        save(tmp_path / "source" / name, picture(0, (8, 8)))
    job = Job(tmp_path / "source", tmp_path / "out", PackOptions(pack=True), "stop", 1, Tally())
    prepared = prepare(job)
    assert {name: len(images.index) for name, images in prepared.items()} == {"train": 2, "test": 1}
    folders = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert folders == ["test", "test.pack", "train", "train.pack"]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    save(tmp_path / "source" / "a.png", picture(0, (8, 8)))
    images = run(tmp_path / "source", tmp_path / "out")
    assert (images.labels_N, images.class_names) == (None, ())


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


@pytest.mark.parametrize("options", [PackOptions(), PackOptions(pack=True), PackOptions(raw=8)])
def test_the_hash_is_of_the_images_and_nothing_else(
    tmp_path: Path, source: Path, options: PackOptions
) -> None:
    before = run(source, tmp_path / "one", options).index.content_hash
    moved = shutil.copytree(source, tmp_path / "moved")
    assert run(moved, tmp_path / "two", options, workers=2).index.content_hash == before
    save(source / "b" / "2.jpg", picture(9, (17, 16)))
    assert run(source, tmp_path / "one", options).index.content_hash != before


def test_a_relative_source_is_found_from_anywhere(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(Path("source"), Path("out"))
    run(Path("source"), Path("packed"), PackOptions(pack=True))
    monkeypatch.chdir("/")
    expected = [path.read_bytes() for path in files_of(source)]
    assert encoded(open_manifest(tmp_path / "out" / "train")) == expected
    assert encoded(open_manifest(tmp_path / "packed" / "train")) == expected


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


def tar_members(folder: Path) -> list[tuple[str, bytes]]:
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for info in archive:
                file = archive.extractfile(info)
                assert file is not None
                found.append((info.name, file.read()))
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pack_keeps_the_bytes_of_the_images(tmp_path: Path, source: Path, workers: int) -> None:
    images = run(source, tmp_path / "out", PackOptions(pack=True), workers=workers)
    originals = [path.read_bytes() for path in files_of(source)]
    assert encoded(images) == originals
    assert sides(images) == [(height, width) for width, height in SIZES]
    assert labels(images) == [0, 0, 1, 1, 2, 2]
    assert images.class_names == ("a", "b", "c")
    members = tar_members(tmp_path / "out" / "train.pack")
    assert [content for _, content in members] == originals
    names = [name for name, _ in members]
    assert names == sorted(names)
    assert [Path(name).suffix for name in names] == [path.suffix for path in files_of(source)]
    assert os.listdir(tmp_path / "out" / "train.pack") == ["00000.tar"]


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
    os.truncate(tmp_path / "out" / "train.pack" / "00000.tar", 3000)
    with pytest.raises(OSError, match=r"00000\.tar ends before byte"):
        encoded(images)


XMP = b"""http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description tiff:Orientation="6"
xmlns:tiff="http://ns.adobe.com/tiff/1.0/"/></rdf:RDF></x:xmpmeta>"""


def test_a_pack_has_the_sides_its_images_had_before(tmp_path: Path) -> None:
    """An orientation in XMP alone is one that Pillow follows and DALI does not."""
    path = save(tmp_path / "source" / "a.jpg", picture(1, (30, 20)))
    content = path.read_bytes()
    segment = b"\xff\xe1" + (len(XMP) + 2).to_bytes(2, "big") + XMP
    path.write_bytes(content[:2] + segment + content[2:])
    in_place = run(tmp_path / "source", tmp_path / "out")
    packed = run(tmp_path / "source", tmp_path / "packed", PackOptions(pack=True))
    assert sides(packed) == sides(in_place)


def test_resize_cuts_the_shorter_side_down_and_leaves_small_images(
    tmp_path: Path, source: Path
) -> None:
    images = run(source, tmp_path / "out", PackOptions(pack=True, resize=20))
    assert sides(images) == [(20, 27), (50, 20), (16, 16), (20, 39), (70, 9), (21, 20)]
    was_small = [min(size) <= 20 for size in SIZES]
    for row, path in enumerate(files_of(source)):
        content = encoded(images)[row]
        assert (content == path.read_bytes()) == was_small[row]
        with Image.open(io.BytesIO(content)) as image:
            assert image.size == sides(images)[row][::-1]
            assert image.format == "JPEG"
            expected = picture(row, SIZES[row]).resize(image.size, Image.Resampling.BICUBIC)
            assert distance(np.asarray(image), np.asarray(expected)) < 12
            assert distance(np.asarray(image), np.asarray(expected)[::-1]) > 24


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other).mean())


def test_a_better_quality_takes_more_bytes(tmp_path: Path, source: Path) -> None:
    sums = [
        sum(map(len, encoded(run(source, tmp_path / str(q), PackOptions(True, 20, quality=q)))))
        for q in (30, 95)
    ]
    assert sums[0] < sums[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_raw_without_resizing_is_pillows_decode(tmp_path: Path, source: Path, workers: int) -> None:
    images = run(source, tmp_path / "out", PackOptions(raw=70), workers=workers)
    assert os.listdir(tmp_path / "out" / "train.pack") == ["00000.bin"]
    for row, path in enumerate(files_of(source)):
        assert (pixels(images, row) == np.asarray(Image.open(path))).all()


def test_raw_cuts_the_shorter_side_down(tmp_path: Path, source: Path) -> None:
    big = save(source / "c" / "6.jpg", picture(6, (640, 400)), quality=95)
    images = run(source, tmp_path / "out", PackOptions(raw=20))
    expected = [(20, 27), (50, 20), (16, 16), (20, 39), (70, 9), (21, 20), (20, 32)]
    assert sides(images) == expected
    box = Image.open(big).resize((32, 20), Image.Resampling.BICUBIC)
    assert distance(pixels(images, 6), np.asarray(box)) < 3


@pytest.mark.parametrize(
    ("given", "side", "expected"),
    [
        ((30, 40), 15, (15, 20)),
        ((40, 30), 15, (20, 15)),
        ((15, 40), 15, (15, 40)),
        ((14, 40), 15, (14, 40)),
        ((3, 1000), 2, (2, 667)),
        ((30, 40), None, (30, 40)),
    ],
)
def test_target_size(given: tuple[int, int], side: int | None, expected: tuple[int, int]) -> None:
    assert target_size(*given, side) == expected


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_raw_images_a_camera_turned_are_upright(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "source" / f"a.{kind}", picture(1, (30, 20)), exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    whole = run(tmp_path / "source", tmp_path / "whole", PackOptions(raw=20))
    assert sides(whole) == [upright.shape[:2]]
    assert (pixels(whole, 0) == upright).all()
    half = run(tmp_path / "source", tmp_path / "half", PackOptions(raw=10))
    assert sides(half) == [(upright.shape[0] // 2, upright.shape[1] // 2)]
    packed = run(tmp_path / "source", tmp_path / "packed", PackOptions(pack=True, resize=10))
    assert sides(packed) == sides(half)
    with Image.open(io.BytesIO(encoded(packed)[0])) as image:
        assert image.getexif().get(0x0112, 1) == 1
        assert image.size == sides(half)[0][::-1]


def save_gray_16(path: Path) -> np.ndarray:
    values = np.linspace(0, 65535, 24 * 18).astype(np.uint16).reshape(18, 24)
    save(path, Image.fromarray(values))
    return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)


def save_palette(path: Path) -> np.ndarray:
    image = picture(2, (24, 18)).quantize(16)
    save(path, image, transparency=3)
    return np.asarray(image.convert("RGB"))


def save_one_bit(path: Path) -> np.ndarray:
    image = picture(3, (24, 18)).convert("1")
    save(path, image)
    return np.asarray(image.convert("RGB"))


def save_transparent(path: Path) -> np.ndarray:
    image = picture(4, (24, 18))
    image.putalpha(77)
    save(path, image)
    return np.asarray(image)[..., :3]


def save_cmyk(path: Path) -> np.ndarray:
    jpeg = save(path.with_suffix(".jpg"), picture(5, (24, 18)).convert("CMYK"), quality=95)
    return np.asarray(Image.open(jpeg).convert("RGB"))


def save_gray_jpeg(path: Path) -> np.ndarray:
    jpeg = save(path.with_suffix(".jpg"), picture(5, (24, 18)).convert("L"))
    return np.asarray(Image.open(jpeg).convert("RGB"))


@pytest.mark.parametrize(
    "write", [save_gray_16, save_palette, save_one_bit, save_transparent, save_cmyk, save_gray_jpeg]
)
def test_raw_makes_rgb_of_every_mode(tmp_path: Path, write: Callable[[Path], np.ndarray]) -> None:
    (tmp_path / "source").mkdir()
    expected = write(tmp_path / "source" / "a.png")
    whole = run(tmp_path / "source", tmp_path / "whole", PackOptions(raw=18))
    assert (pixels(whole, 0) == expected).all()
    half = run(tmp_path / "source", tmp_path / "half", PackOptions(raw=9))
    small = Image.fromarray(expected).resize((12, 9), Image.Resampling.BICUBIC)
    assert distance(pixels(half, 0), np.asarray(small)) < 4


def test_cmyk_is_the_colour_it_was(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK")
    save(tmp_path / "source" / "red.jpg", red, quality=95)
    images = run(tmp_path / "source", tmp_path / "out", PackOptions(raw=16))
    assert distance(pixels(images, 0), np.array([255, 0, 0])) < 8


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    for number in range(12):
        save(folder / "ab"[number // 6] / f"{number:02}.png", picture(number, (24, 18 + number)))
    return folder


@pytest.mark.parametrize("options", [PackOptions(pack=True), PackOptions(raw=99)])
@pytest.mark.parametrize("workers", [1, 2])
def test_several_parts_are_one_pack(
    tmp_path: Path, many: Path, options: PackOptions, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encoded(run(many, tmp_path / "whole", options))
    monkeypatch.setattr("and_dist.data.pack.PART_BYTES", 5000)
    images = run(many, tmp_path / "parts", options, workers=workers)
    assert len(os.listdir(tmp_path / "parts" / "train.pack")) > 3
    assert encoded(images) == whole
    assert labels(images) == [0] * 6 + [1] * 6
    if options.pack:
        assert [c for _, c in tar_members(tmp_path / "parts" / "train.pack")] == whole


@pytest.mark.parametrize("options", [PackOptions(pack=True), PackOptions(raw=99)])
def test_a_part_that_grows_too_large_rolls_over(
    tmp_path: Path, many: Path, options: PackOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encoded(run(many, tmp_path / "whole", options))
    monkeypatch.setattr("and_dist.data.pack.SHARD_BYTES", 10240)
    images = run(many, tmp_path / "shards", options)
    shards = sorted((tmp_path / "shards" / "train.pack").iterdir())
    assert len(shards) > 2
    assert max(shard.stat().st_size for shard in shards) <= 10240
    assert encoded(images) == whole


def pack_many(many: Path, folder: Path, options: PackOptions | None = None) -> Packed:
    """write_pack itself, whose parts stay as they are after a kill."""
    names = Names.of([os.path.relpath(path, many) for path in files_of(many)])
    opened = [Image.open(path).size for path in files_of(many)]
    length_N = np.array([path.stat().st_size for path in files_of(many)])
    heights_N = np.array([height for _, height in opened], np.int32)
    widths_N = np.array([width for width, _ in opened], np.int32)
    index = index_files(many, names, length_N, heights_N, widths_N)
    options = options or PackOptions(pack=True)
    rows = np.arange(len(index))
    return write_pack(index, rows, length_N, folder, options, 1, lambda _: None)


def read_packed(packed: Packed, folder: Path) -> list[bytes]:
    """The files of a pack are named as its manifest, which lies beside it, sees them."""
    store = packed.index.store
    assert isinstance(store, ArchiveStore)
    beside = tuple(folder / path for path in store.files)
    places = store.file_N, store.offset_N, store.length_N
    moved = ArchiveStore(beside, *places, store.widths_N, store.kind)
    return [moved.read(row) for row in range(len(packed.rows))]


def times(folder: Path, pattern: str = "*.tar") -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob(pattern)}


def test_a_pack_goes_on_where_it_was_killed(
    tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("and_dist.data.pack.PART_BYTES", 5000)
    folder = tmp_path / "train.pack"
    first = pack_many(many, folder)
    before = times(folder)
    assert len(before) > 3
    for name in ("00001.npz", "00001.tar"):
        (folder / name).unlink()
    (folder / ".00001.tar.unfinished").write_bytes(b"half a tar")
    (folder / "00001.unfinished.npz").write_bytes(b"half a table")
    again = pack_many(many, folder)
    after = times(folder)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"00001.tar"}
    assert again.index.content_hash == first.index.content_hash
    assert read_packed(again, folder) == [path.read_bytes() for path in files_of(many)]
    assert not list(folder.glob(".*"))


def interrupt(source: Path, out: Path, options: PackOptions) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(Job(source, out, options, "stop", 1, Impatient()))


def test_an_interrupted_preparation_goes_on(
    tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("and_dist.data.pack.PART_BYTES", 5000)
    options, out = PackOptions(pack=True), tmp_path / "out"
    whole = run(many, tmp_path / "whole", options)
    interrupt(many, out, options)
    assert not (out / "train").exists()
    before = times(out / "train.pack")
    images = run(many, out, options)
    after = times(out / "train.pack")
    assert after["00000.tar"] == before["00000.tar"]
    assert images.index.content_hash == whole.index.content_hash
    assert encoded(images) == encoded(whole)
    assert {path.suffix for path in (out / "train.pack").iterdir()} == {".tar"}


def test_an_interruption_leaves_no_manifest_of_what_was_overwritten(
    tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either the old manifest and its images, or none."""
    monkeypatch.setattr("and_dist.data.pack.PART_BYTES", 5000)
    before = encoded(run(many, tmp_path / "out", PackOptions(pack=True)))
    interrupt(many, tmp_path / "out", PackOptions(pack=True, resize=9))
    if (tmp_path / "out" / "train").exists():
        assert encoded(open_manifest(tmp_path / "out" / "train")) == before


def test_a_part_that_lost_its_file_is_written_again(
    tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("and_dist.data.pack.PART_BYTES", 5000)
    folder = tmp_path / "train.pack"
    pack_many(many, folder)
    (folder / "00001.tar").unlink()
    again = pack_many(many, folder)
    assert read_packed(again, folder) == [path.read_bytes() for path in files_of(many)]


def test_other_options_write_the_parts_anew(
    tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("and_dist.data.pack.PART_BYTES", 5000)
    folder = tmp_path / "train.pack"
    pack_many(many, folder)
    resized = pack_many(many, folder, PackOptions(pack=True, resize=9))
    assert np.minimum(resized.index.heights_N, resized.index.widths_N).tolist() == [9] * 12
    for content in read_packed(resized, folder):
        assert min(Image.open(io.BytesIO(content)).size) == 9
    better = pack_many(many, folder, PackOptions(pack=True, resize=9, quality=95))
    assert read_packed(better, folder) != read_packed(resized, folder)


def test_other_files_write_their_part_anew(
    tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("and_dist.data.pack.PART_BYTES", 5000)
    folder = tmp_path / "train.pack"
    pack_many(many, folder)
    save(many / "b" / "11.png", picture(99, (24, 30)))
    again = pack_many(many, folder)
    assert read_packed(again, folder) == [path.read_bytes() for path in files_of(many)]


def test_other_files_of_the_same_size_write_their_part_anew(tmp_path: Path) -> None:
    """All BMPs of 8 x 8 have as many bytes, so their names and times have to tell them apart."""
    for name in ("one", "two"):
        save(tmp_path / name / f"{name}.bmp", picture(len(name) + ord(name[0]), (8, 8)))
    folder = tmp_path / "train.pack"
    pack_many(tmp_path / "one", folder)
    packed = pack_many(tmp_path / "two", folder)
    assert read_packed(packed, folder) == [(tmp_path / "two" / "two.bmp").read_bytes()]


def test_a_second_preparation_leaves_nothing_of_the_first(
    tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("and_dist.data.pack.PART_BYTES", 5000)
    run(many, tmp_path / "out", PackOptions(pack=True))
    run(many, tmp_path / "out", PackOptions(raw=9))
    assert os.listdir(tmp_path / "out" / "train.pack") == ["00000.bin"]


BAD = [
    (lambda path: path.write_bytes(b""), "it is empty"),
    (lambda path: path.write_bytes(b"a letter"), "its header is of no known image format"),
]
REWRITES = [PackOptions(), PackOptions(pack=True), PackOptions(True, 9), PackOptions(raw=9)]


@pytest.mark.parametrize("options", REWRITES)
@pytest.mark.parametrize(("damage", "reason"), BAD)
def test_stop_names_the_first_bad_image_and_leaves_no_manifest(
    tmp_path: Path,
    source: Path,
    options: PackOptions,
    damage: Callable[[Path], Any],
    reason: str,
) -> None:
    damage(source / "b" / "2.jpg")
    damage(source / "c" / "5.jpg")
    with pytest.raises(ValueError, match=rf"b/2\.jpg: {reason} \(2 of 6 images of the train split"):
        run(source, tmp_path / "out", options)
    assert not (tmp_path / "out" / "train").exists()


@pytest.mark.parametrize("options", REWRITES)
@pytest.mark.parametrize(("damage", "reason"), BAD)
def test_skip_leaves_bad_images_out_and_says_why(
    tmp_path: Path,
    source: Path,
    options: PackOptions,
    damage: Callable[[Path], Any],
    reason: str,
) -> None:
    damage(source / "b" / "2.jpg")
    damage(source / "c" / "5.jpg")
    images = run(source, tmp_path / "out", options, "skip")
    assert labels(images) == [0, 0, 1, 2]
    assert images.class_names == ("a", "b", "c")
    without = shutil.copytree(source, tmp_path / "without")
    for name in ("b/2.jpg", "c/5.jpg"):
        (without / name).unlink()
    same = run(without, tmp_path / "same", options)
    assert (sides(images), encoded(images)) == (sides(same), encoded(same))
    written = (tmp_path / "out" / "bad_images.txt").read_text().splitlines()
    assert written == [f"{source}/b/2.jpg: {reason}", f"{source}/c/5.jpg: {reason}"]


DECODING = [PackOptions(True, 9), PackOptions(raw=9)]


@pytest.mark.parametrize("options", DECODING)
def test_stop_leaves_no_manifest_where_an_image_ends_too_early(
    tmp_path: Path, source: Path, options: PackOptions
) -> None:
    truncate(source / "a" / "1.jpg")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"a/1\.jpg: OSError: .*runcated.*\(1 of 6 images"):
            run(source, tmp_path / "out", options)
        assert not (tmp_path / "out" / "train").exists()


@pytest.mark.parametrize("options", DECODING)
def test_skip_leaves_out_what_the_packer_cannot_decode(
    tmp_path: Path, source: Path, options: PackOptions
) -> None:
    truncate(source / "a" / "1.jpg")
    images = run(source, tmp_path / "out", options, "skip")
    assert labels(images) == [0, 1, 1, 2, 2]
    assert "a/1.jpg: OSError: " in (tmp_path / "out" / "bad_images.txt").read_text()


@pytest.mark.parametrize("options", DECODING)
def test_a_mended_image_is_taken_in(tmp_path: Path, source: Path, options: PackOptions) -> None:
    whole = (source / "a" / "1.jpg").read_bytes()
    truncate(source / "a" / "1.jpg")
    run(source, tmp_path / "out", options, "skip")
    (source / "a" / "1.jpg").write_bytes(whole)
    assert len(run(source, tmp_path / "out", options, "skip").index) == 6
    assert not (tmp_path / "out" / "bad_images.txt").exists()


@pytest.mark.parametrize("options", REWRITES)
def test_a_set_of_nothing_but_bad_images_is_refused(tmp_path: Path, options: PackOptions) -> None:
    path = save(tmp_path / "source" / "a.jpg", picture(1, (40, 40)))
    if options in DECODING:
        truncate(path)
    else:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="all 1 images of the train split are bad"):
        run(tmp_path / "source", tmp_path / "out", options, "skip")
    assert not (tmp_path / "out" / "train").exists()


def save_cifar(folder: Path) -> np.ndarray:
    """CIFAR-10's binary version, an image a batch."""
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    names = [*(f"data_batch_{part}.bin" for part in range(1, 6)), "test_batch.bin"]
    for label, (name, image) in enumerate(zip(names, images, strict=True)):
        (folder / name).write_bytes(bytes([label]) + image.transpose(2, 0, 1).tobytes())
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    return images


@pytest.mark.parametrize("check", [None, find_undecodable])
def test_images_that_come_as_pixels_become_a_block(tmp_path: Path, check: Check | None) -> None:
    expected = save_cifar(tmp_path / "cifar")
    job = Job(tmp_path / "cifar", tmp_path / "out", PackOptions(), "stop", 1, Tally())
    prepare(job, check)
    shutil.move(tmp_path / "out", tmp_path / "moved")
    train, test = (open_manifest(tmp_path / "moved" / split) for split in ("train", "test"))
    assert (len(train.index), len(test.index)) == (5, 1)
    assert (labels(train), labels(test)) == ([0, 1, 2, 3, 4], [5])
    assert all((pixels(train, row) == expected[row]).all() for row in range(5))
    assert (pixels(test, 0) == expected[5]).all()


def test_images_in_a_tar_stay_in_it(tmp_path: Path, source: Path) -> None:
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for path in files_of(source):
            archive.add(path, path.name)
    images = run(tmp_path / "all.tar", tmp_path / "out")
    assert encoded(images) == [path.read_bytes() for path in files_of(source)]
    assert os.listdir(tmp_path / "out") == ["train"]
    packed = run(tmp_path / "all.tar", tmp_path / "packed", PackOptions(pack=True))
    assert encoded(packed) == encoded(images)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"raw": 64, "pack": True}, "choose one"),
        ({"raw": 64, "resize": 64}, "choose one"),
        ({"resize": 64}, "--resize needs --pack"),
        ({"pack": True, "resize": 64, "quality": 0}, r"--quality 0 is not one of 1\.\.100"),
        ({"pack": True, "resize": 64, "quality": 101}, "--quality 101"),
        ({"raw": -1}, "above 0"),
        ({"raw": 0}, "above 0"),
        ({"pack": True, "resize": -5}, "above 0"),
        ({"pack": True, "resize": 0}, "above 0"),
    ],
)
def test_impossible_options_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PackOptions(**given)


def test_verify_finds_what_headers_do_not_tell(tmp_path: Path, source: Path) -> None:
    truncate(source / "a" / "1.jpg")
    assert len(run(source, tmp_path / "out").index) == 6
    with pytest.raises(ValueError, match=r"a/1\.jpg: .*cut short \(1 of 6"):
        run(source, tmp_path / "verified", check=find_undecodable)
    assert not (tmp_path / "verified" / "train").exists()
    images = run(source, tmp_path / "verified", bad_images="skip", check=find_undecodable)
    assert labels(images) == [0, 1, 1, 2, 2]
    said = (tmp_path / "verified" / "bad_images.txt").read_text()
    assert said.startswith(f"{source}/a/1.jpg: ")
    assert said.count("\n") == 1


def test_verify_leaves_out_what_is_bad_already(tmp_path: Path, source: Path) -> None:
    (source / "a" / "0.jpg").write_bytes(b"")
    truncate(source / "c" / "5.jpg")
    images = run(source, tmp_path / "out", bad_images="skip", check=find_undecodable)
    assert labels(images) == [0, 1, 1, 2]
    said = (tmp_path / "out" / "bad_images.txt").read_text().splitlines()
    assert said[0].endswith("a/0.jpg: it is empty")
    assert "c/5.jpg: " in said[1]
    assert len(said) == 2


def test_verify_of_nothing_but_bad_images_is_a_sentence(tmp_path: Path) -> None:
    for number in range(3):
        truncate(save(tmp_path / "source" / f"{number}.jpg", picture(number, (60, 50))))
    with pytest.raises(ValueError, match="all 3 images of the train split are bad"):
        run(tmp_path / "source", tmp_path / "out", bad_images="skip", check=find_undecodable)


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """(exit status, stdout, stderr) of `and-dist prepare` in this process."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["and-dist", "prepare", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


def test_the_command_says_what_it_made(tmp_path: Path, source: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    status, said, errors = cli(source, "--out", out, "--pack", "--resize", 8, "--workers", 1)
    assert (status, errors) == (0, "")
    assert f"{out}/train: 6 images, 3 classes" in said.replace("\n", "")
    assert sides(open_manifest(out / "train"))[2] == (8, 8)


def test_the_command_says_where_the_bad_images_are_listed(
    tmp_path: Path, source: Path, cli: Cli
) -> None:
    out = tmp_path / "out"
    truncate(source / "a" / "1.jpg")
    arguments = (source, "--out", out, "--verify", "--workers", 1)
    status, _, errors = cli(*arguments)
    assert status == 2
    assert f"and-dist: {source}/a/1.jpg: " in errors
    assert "cut short" in errors
    status, said, _ = cli(*arguments, "--bad-images", "skip")
    assert status == 0
    assert "train: 5 images, 3 classes" in said
    assert f"left out, and why: {out}/bad_images.txt" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["SOURCE", "--raw", "64", "--pack"], "--raw stores pixels, --pack and --resize store"),
        (["SOURCE", "--resize", "64"], "--resize needs --pack"),
        (["SOURCE", "--pack", "--resize", "64", "--quality", "0"], "--quality 0 is not one of"),
        (["SOURCE", "--bad-images", "keep"], "--bad-images keep is not one of: stop, skip"),
        ([], "say either SOURCE or --download NAME"),
        (["SOURCE", "--download", "cifar10"], "say either SOURCE or --download NAME"),
        (["--download", "nothing"], "--download nothing is not one of: cifar10, cifar100, svhn"),
        (["/nowhere"], "/nowhere does not exist"),
    ],
)
def test_bad_input_gets_a_sentence_and_leaves_nothing(
    tmp_path: Path, source: Path, cli: Cli, arguments: list[str], sentence: str
) -> None:
    given = [str(source) if word == "SOURCE" else word for word in arguments]
    status, _, errors = cli(*given, "--out", tmp_path / "out")
    assert status == 2
    assert errors.startswith(f"and-dist: {sentence}")
    assert not (tmp_path / "out").exists()


def test_an_out_that_cannot_be_a_folder_gets_a_sentence(
    tmp_path: Path, source: Path, cli: Cli
) -> None:
    (tmp_path / "file").write_text("here already")
    status, _, errors = cli(source, "--out", tmp_path / "file" / "out", "--workers", 1)
    assert status in (1, 2)
    assert errors.startswith("and-dist: ")
