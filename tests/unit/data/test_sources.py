"""The loader's contract, over every kind of store, at worlds 1, 2, 3 and 5."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from and_dist.config.schema import DataConfig
from and_dist.data.datasets import index_folder
from and_dist.data.index import ImageIndex
from and_dist.data.loader import Batch, FeatureLoader, TrainingLoader
from and_dist.data.order import Order
from and_dist.data.shapes import draw_shapes
from and_dist.data.transcode import PackOptions
from and_dist.data.unreadable import BadImages
from tests.loading import CPU, images_by_row, kept, world_of
from tests.pictures import save_pictures
from tests.unit.data.preparing import run

CONFIG = DataConfig(image_size=16, flip=True)
COUNT = 43
KINDS = ("files", "tar", "resized", "raw", "memory")


@pytest.fixture(scope="module")
def indices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageIndex]:
    base = tmp_path_factory.mktemp("sources")
    sizes = [(20 + 7 * number % 40, 20 + 11 * number % 40) for number in range(COUNT)]
    save_pictures(base / "images", sizes, "ab", quality=95)

    def pack(name: str, options: PackOptions) -> ImageIndex:
        return run(base / "images", base / name, options).index

    return {
        "files": index_folder(base / "images").index,
        "tar": pack("tar", PackOptions(pack=True)),
        "resized": pack("resized", PackOptions(pack=True, resize=24)),
        "raw": pack("raw", PackOptions(raw=64)),
        "memory": draw_shapes("train", COUNT).index,
    }


def batches_of(
    index: ImageIndex, rank: int, size: int, epoch: int = 1, first_step: int = 0
) -> list[Batch]:
    order, bad = Order(len(index), 8, 3), BadImages(index, "stop")
    loader = TrainingLoader(index, CONFIG, order, world_of(rank, size), bad)
    return kept(loader.batches(epoch, first_step))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_each_row_once_an_epoch_and_the_same_pixels_at_any_world_size(
    indices: dict[str, ImageIndex], kind: str, size: int
) -> None:
    alone = images_by_row(batches_of(indices[kind], 0, 1))
    seen: list[int] = []
    for rank in range(size):
        for row, image in images_by_row(batches_of(indices[kind], rank, size)).items():
            assert torch.equal(image, alone[row])
            seen.append(row)
    assert sorted(seen) == list(range(COUNT))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 3), (5, 2)])
def test_an_epoch_goes_on_in_its_middle_at_any_world_size(
    indices: dict[str, ImageIndex], kind: str, before: int, after: int
) -> None:
    """Steps 0..2 on some ranks, the rest on others: as one uninterrupted epoch."""
    index = indices[kind]
    whole = images_by_row(batches_of(index, 0, 1))
    seen: list[int] = []
    for rank in range(before):
        seen += images_by_row(batches_of(index, rank, before)[:3])
    for rank in range(after):
        for row, image in images_by_row(batches_of(index, rank, after, first_step=3)).items():
            assert torch.equal(image, whole[row])
            seen.append(row)
    assert sorted(seen) == list(range(COUNT))


@pytest.mark.parametrize("kind", KINDS)
def test_the_test_view_is_the_same_to_the_bit_each_time(
    indices: dict[str, ImageIndex], kind: str
) -> None:
    config = DataConfig(image_size=20, test_resize=24)
    runs = []
    for batch_size in (43, 5):
        loader = FeatureLoader(
            indices[kind], config, batch_size, CPU, BadImages(indices[kind], "stop")
        )
        images = torch.cat([batch.images_BCHW for batch in kept(loader.batches(np.arange(COUNT)))])
        runs.append(images)
    assert torch.equal(*runs)


def test_a_tar_shows_what_its_files_show(indices: dict[str, ImageIndex]) -> None:
    files, tar = (images_by_row(batches_of(indices[k], 0, 1)) for k in ("files", "tar"))
    assert all(torch.equal(image, tar[row]) for row, image in files.items())


def test_raw_pixels_show_what_their_files_show(indices: dict[str, ImageIndex]) -> None:
    """Within the difference of two JPEG decoders, in units of the normalised image."""
    files, raw = (images_by_row(batches_of(indices[k], 0, 1)) for k in ("files", "raw"))
    assert max((image - raw[row]).abs().max().item() for row, image in files.items()) < 0.15
