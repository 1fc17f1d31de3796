"""What real data sets contain, each as a real file, read by the real pipeline."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from and_dist.config.schema import DataConfig
from and_dist.data.datasets import index_folder
from and_dist.data.index import ImageIndex
from and_dist.data.loader import Batch, TrainingLoader
from and_dist.data.order import Order
from and_dist.data.transcode import PackOptions
from and_dist.data.unreadable import BadImages
from tests.loading import images_by_row, kept, world_of
from tests.other_user import as_nobody
from tests.pictures import cut_header, cut_pixels, cut_png, oriented, picture, save, save_pictures
from tests.unit.data.preparing import run

CONFIG = DataConfig(image_size=16, bad_images="skip", jitter=0.0, hue=0.0, grayscale=0.0)
COUNT = 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """39 good pictures; a test adds the odd one."""
    return save_pictures(tmp_path / "images", [(48, 36)] * (COUNT - 1), quality=90)


class Reader:
    """A loader over an index, and what it said of bad images."""

    def __init__(
        self,
        index: ImageIndex,
        policy: Literal["stop", "skip"] = "skip",
        batch_size: int = 8,
        config: DataConfig = CONFIG,
    ) -> None:
        self.said: list[str] = []
        self.bad = BadImages(index, policy, self.said.append)
        order = Order(len(index), batch_size, 0)
        self._loader = TrainingLoader(index, config, order, world_of(), self.bad)

    def epoch(self, number: int = 0) -> list[Batch]:
        return kept(self._loader.batches(number))

    def images(self) -> dict[int, torch.Tensor]:
        return images_by_row(self.epoch())

    def rows(self, number: int = 0) -> list[int]:
        return sorted(r for batch in self.epoch(number) for r in batch.rows_B.tolist() if r >= 0)


def save_gray_16(path: Path) -> None:
    Image.fromarray(np.full((30, 40), 0x80FF, np.uint16)).save(path)


def save_animation(path: Path) -> None:
    picture().save(path, save_all=True, append_images=[picture(seed=1)])


def save_cut_gif(path: Path) -> None:
    save_animation(path)
    os.truncate(path, 900)


GOOD: dict[str, Callable[[Path], None]] = {
    "cmyk.jpg": lambda path: picture().convert("CMYK").save(path),
    "gray.jpg": lambda path: picture().convert("L").save(path),
    "animation.gif": save_animation,
    "palette.png": lambda path: picture().convert("P").save(path),
    "transparent.png": lambda path: picture().convert("RGBA").save(path),
    "sixteen-bit.png": save_gray_16,
    "one-pixel.png": lambda path: Image.new("RGB", (1, 1), (9, 8, 7)).save(path),
    "one-pixel.jpg": lambda path: Image.new("RGB", (1, 1), (9, 8, 7)).save(path),
    "thin.png": lambda path: Image.new("RGB", (3000, 1)).save(path),
    "turned.jpg": lambda path: picture().save(path, exif=oriented(6)),
    "progressive.jpg": lambda path: picture().save(path, progressive=True),
    "n" * 251 + ".jpg": lambda path: picture().save(path),
    os.fsdecode(b"caf\xe9\xff.jpg"): lambda path: picture().save(path),
    'spaces \' and "quotes".jpg': lambda path: picture().save(path),
}


@pytest.mark.parametrize("name", GOOD, ids=lambda name: ascii(name)[:20])
def test_odd_images_are_read(folder: Path, name: str) -> None:
    GOOD[name](folder / name)
    reader = Reader(index_folder(folder).index)
    assert reader.rows() == list(range(COUNT))
    assert reader.said == []


def test_sixteen_bits_are_scaled_not_cut(folder: Path) -> None:
    save_gray_16(folder / "sixteen-bit.png")
    index = index_folder(folder).index
    row = list(index.store.names).index("sixteen-bit.png")
    for batch in Reader(index).epoch():
        for at in (batch.rows_B == row).nonzero().flatten().tolist():
            pixels = batch.images_BCHW[at] * torch.tensor(CONFIG.std)[:, None, None]
            gray = 255 * (pixels + torch.tensor(CONFIG.mean)[:, None, None])
            assert (gray - 128).abs().max() < 2


def cut_short(path: Path) -> None:
    cut_pixels(save(path, picture(size=(200, 150)), quality=95))


def shorten(path: Path) -> None:
    """To its first bytes, so that no crop of it can be read."""
    os.truncate(path, 300)


def save_huge(path: Path) -> None:
    Image.new("L", (20_000, 20_000)).save(path, quality=30)


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "gone.jpg")


HEADER_TELLS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.jpg": (lambda path: path.write_bytes(b""), "it is empty"),
    "text.jpg": (lambda path: path.write_text("hello"), "its header is of no known image format"),
    "dangling.jpg": (link_to_nothing, "it cannot be read: No such file or directory"),
    "huge.jpg": (save_huge, "20000 x 20000 pixels are more than"),
}


@pytest.mark.parametrize("name", HEADER_TELLS)
def test_what_the_header_tells_never_enters_the_index(folder: Path, name: str) -> None:
    make, reason = HEADER_TELLS[name]
    make(folder / name)
    with pytest.raises(ValueError, match=r"data\.bad_images=skip") as caught:
        index_folder(folder)
    assert f"{folder / name}: {reason}" in str(caught.value)
    images = index_folder(folder, "skip")
    assert len(images.index) == COUNT - 1
    (line,) = images.left_out
    assert line.startswith(f"{folder / name}: {reason}")
    assert Reader(images.index).rows() == list(range(COUNT - 1))


def test_a_file_that_may_not_be_read_is_named(folder: Path) -> None:
    (folder / "secret.jpg").write_bytes(b"secret")
    (folder / "secret.jpg").chmod(0)
    with as_nobody(folder):
        images = index_folder(folder, "skip")
    assert images.left_out == (f"{folder / 'secret.jpg'}: it cannot be read: Permission denied",)


def save_cut_png(path: Path) -> None:
    cut_png(save(path, picture(size=(200, 150))))


def save_png_without_its_last_chunk(path: Path) -> None:
    save(path, picture(size=(200, 150)))
    os.truncate(path, path.stat().st_size - 12)


DECODING_TELLS: dict[str, tuple[Callable[[Path], object], str]] = {
    "short.jpg": (cut_short, "its data is damaged or cut short"),
    "short.png": (save_cut_png, "it is cut short"),
    "endless.png": (save_png_without_its_last_chunk, "it is cut short"),
    "short.gif": (save_cut_gif, "its data is damaged or cut short"),
}


@pytest.mark.parametrize("name", DECODING_TELLS)
def test_what_decoding_tells_is_left_out_once_and_named_once(folder: Path, name: str) -> None:
    make, reason = DECODING_TELLS[name]
    make(folder / name)
    index = index_folder(folder).index
    bad_row = list(index.store.names).index(name)
    reader = Reader(index)
    for epoch in range(3):
        assert reader.rows(epoch) == [row for row in range(COUNT) if row != bad_row]
    (said,) = reader.said
    assert said.startswith(f"left out {folder / name}: {reason}")
    with pytest.raises(RuntimeError, match=r"data\.bad_images=skip") as caught:
        Reader(index, "stop").epoch()
    assert f"{folder / name}: {reason}" in str(caught.value)


def test_the_other_images_are_the_same_as_without_the_bad_one(folder: Path) -> None:
    picture(seed=99).save(folder / "zz.jpg")
    index = index_folder(folder).index
    whole = Reader(index).images()
    shorten(folder / "zz.jpg")
    seen = Reader(index).images()
    assert seen.keys() == whole.keys() - {COUNT - 1}
    assert all(torch.equal(image, whole[row]) for row, image in seen.items())


def test_a_bad_image_is_left_out_where_hue_is_changed_in_hsv(folder: Path) -> None:
    cut_short(folder / "short.jpg")
    index = index_folder(folder).index
    reader = Reader(index, config=CONFIG.model_copy(update={"hue_model": "hsv"}))
    seen, expected = reader.images(), Reader(index).images()
    assert len(reader.said) == 1
    assert seen.keys() == expected.keys()
    assert all((image - expected[row]).abs().max() < 1e-5 for row, image in seen.items())


def damage_while_reading(folder: Path, damage: Callable[[Path], object]) -> Reader:
    """A file of the last step but one goes bad when the first batch is out; some are read ahead."""
    picture(seed=99).save(folder / "zz.jpg")
    index = index_folder(folder).index
    order = Order(COUNT, 2, 0)
    victim = folder / index.store.names[int(order.global_rows(0, 18)[0])]
    reader = Reader(index, batch_size=2)
    batches: Iterator[Batch] = reader._loader.batches(0)
    rows = next(batches).rows_B.tolist()
    damage(victim)
    rows += [row for batch in batches for row in batch.rows_B.tolist()]
    assert rows.count(-1) == 1
    assert len({row for row in rows if row >= 0}) == COUNT - 1
    assert str(victim) in reader.said[0]
    return reader


def test_a_file_deleted_while_training_is_left_out(folder: Path) -> None:
    reader = damage_while_reading(folder, Path.unlink)
    assert reader.said[0].endswith("it cannot be read: No such file or directory")


def test_a_file_shortened_while_training_is_left_out(folder: Path) -> None:
    reader = damage_while_reading(folder, shorten)
    assert reader.said[0].endswith("its header is cut short")


def test_a_file_replaced_by_a_smaller_image_is_left_out(folder: Path) -> None:
    reader = damage_while_reading(folder, lambda path: picture(size=(8, 6)).save(path))
    assert "6 x 8 pixels now, 36 x 48 when it was listed" in reader.said[0]


@pytest.mark.parametrize("options", [PackOptions(pack=True), PackOptions(raw=32)])
def test_an_archive_cut_short_while_training_loses_its_end(
    folder: Path, tmp_path: Path, options: PackOptions
) -> None:
    index = run(folder, tmp_path / "out", options).index
    path = (tmp_path / "out" / "train" / index.store.files[0]).resolve()
    last = int(index.store.offset_N[-1])
    os.truncate(path, last + 10)
    reader = Reader(index)
    assert reader.rows() == list(range(COUNT - 2))
    assert "ends before byte" in reader.said[0]


def test_more_than_one_percent_is_no_accident(folder: Path) -> None:
    for number in range(4):
        cut_short(folder / f"x{number}.jpg")
    with pytest.raises(RuntimeError, match=r"[2-4] of 43 images cannot be read, more than 1%"):
        Reader(index_folder(folder).index).rows()


def test_a_batch_of_bad_images_alone_still_has_its_shape(tmp_path: Path) -> None:
    index = index_folder(save_pictures(tmp_path, [(48, 36)] * 300)).index
    order = Order(300, 2, 0)
    for row in order.global_rows(0, 3).tolist():
        shorten(tmp_path / index.store.names[row])
    reader = Reader(index)
    batches = list(TrainingLoader(index, CONFIG, order, world_of(), reader.bad).batches(0))
    assert batches[3].rows_B.tolist() == [-1, -1]
    assert all(batch.images_BCHW.shape == (2, 3, 16, 16) for batch in batches)


READ_OFTEN = """
import sys
from and_dist.data.datasets import index_folder
from tests.unit.data.test_unreadable import COUNT, Path, Reader
index = index_folder(Path(sys.argv[1])).index
for epoch in range(40):
    assert len(Reader(index).rows(epoch)) == COUNT - 1
"""


@pytest.mark.whole_run
@pytest.mark.parametrize(
    ("suffix", "damage"), [("jpg", cut_header), ("jpg", cut_pixels), ("png", cut_png)]
)
def test_damage_never_ends_the_process(
    folder: Path, suffix: str, damage: Callable[[Path], object]
) -> None:
    """DALI 2.4 died of an unreadable header within 25 such epochs, six times of six."""
    damage(save(folder / f"zz.{suffix}", picture(size=(200, 150)), quality=95))
    command = [sys.executable, "-c", READ_OFTEN, str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
