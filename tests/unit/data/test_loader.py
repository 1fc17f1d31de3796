"""The DALI pipeline itself, on pixels in memory and on files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from and_dist.config.schema import DataConfig
from and_dist.data.augment import published_views, training_views
from and_dist.data.datasets import index_folder
from and_dist.data.index import ImageIndex, index_pixels
from and_dist.data.loader import Batch, FeatureLoader, TrainingLoader
from and_dist.data.order import Order
from and_dist.data.shapes import draw_shapes
from and_dist.data.unreadable import BadImages
from tests.loading import CPU, images_by_row, kept, world_of
from tests.pictures import save_pictures
from tests.unit.data.torchvision_jitter import by_torchvision

SHAPES = draw_shapes("train", 61).index
HueModel = Literal["yiq", "hsv"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    """Smooth pictures of several sizes as JPEG and PNG."""
    folder = tmp_path_factory.mktemp("photos")
    sizes = [(90, 60), (64, 64), (50, 120), (200, 150), (33, 31)]
    save_pictures(folder, sizes, suffixes=("jpg", "png"), quality=95)
    return index_folder(folder).index


def pixels_of(batch: Batch, config: DataConfig) -> Tensor:
    """Back to 0..255."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.mean, config.std))
    return 255 * (batch.images_BCHW * std + mean)


def training_batches(
    index: ImageIndex, config: DataConfig, epoch: int, rank: int = 0, size: int = 1
) -> list[Batch]:
    return kept(training_loader(index, config, rank, size).batches(epoch))


def training_loader(
    index: ImageIndex, config: DataConfig, rank: int = 0, size: int = 1
) -> TrainingLoader:
    order, bad = Order(len(index), 8, 5), BadImages(index, config.bad_images)
    return TrainingLoader(index, config, order, world_of(rank, size), bad)


def feature_batches(index: ImageIndex, config: DataConfig, batch_size: int) -> list[Batch]:
    bad = BadImages(index, config.bad_images)
    loader = FeatureLoader(index, config, batch_size, CPU, bad)
    return kept(loader.batches(np.arange(len(index))))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_each_row_comes_once_an_epoch_and_looks_the_same_at_any_world_size(size: int) -> None:
    alone = images_by_row(training_batches(SHAPES, DataConfig(flip=True), 2))
    assert sorted(alone) == list(range(61))
    seen = []
    for rank in range(size):
        images = images_by_row(training_batches(SHAPES, DataConfig(flip=True), 2, rank, size))
        assert all(torch.equal(image, alone[row]) for row, image in images.items())
        seen += images
    assert sorted(seen) == list(range(61))


def test_published_crops_are_pixels_of_the_image_at_any_world_size() -> None:
    """Of 32 pixels that are not resized: each is one of 25 crops of 28, mirrored or not."""
    config = DataConfig(image_size=28, test_resize=32, jitter=0.0, hue=0.0, grayscale=0.0)

    def seen_by(rank: int, size: int) -> dict[int, Tensor]:
        loader = training_loader(SHAPES, config, rank, size)
        return images_by_row(loader.batches(1, random_views=published_views))

    alone = seen_by(0, 1)
    assert sorted(alone) == list(range(61))
    for rank in range(2):
        assert all(torch.equal(image, alone[row]) for row, image in seen_by(rank, 2).items())
    whole = torch.from_numpy(SHAPES.store.block).view(61, 32, 32, 3).permute(0, 3, 1, 2)
    found = set()
    for row, image in alone.items():
        pixels = pixels_of(Batch(image[None], torch.tensor([row])), config)[0]
        fitting = [
            (top, left, is_flipped)
            for top in range(5)
            for left in range(5)
            for is_flipped in (False, True)
            if torch.allclose(
                pixels.flip(-1) if is_flipped else pixels,
                whole[row, :, top : top + 28, left : left + 28].float(),
                atol=1e-3,
            )
        ]
        assert fitting, row
        found.add(fitting[0])
    assert len(found) > 25


@pytest.mark.parametrize("model", ["yiq", "hsv"])
def test_files_come_the_same_at_any_world_size(photos: ImageIndex, model: HueModel) -> None:
    config = DataConfig(image_size=25, flip=True, hue_model=model)
    alone = images_by_row(training_batches(photos, config, 1))
    for rank in range(2):
        images = images_by_row(training_batches(photos, config, 1, rank, 2))
        assert all(torch.equal(image, alone[row]) for row, image in images.items())


def test_an_epoch_continues_at_a_step_as_it_would_have() -> None:
    loader = training_loader(SHAPES, DataConfig())
    whole = kept(loader.batches(3))
    for first in (7, 0, 4):
        rest = kept(loader.batches(3, first))
        assert len(rest) == len(whole) - first
        for ours, theirs in zip(rest, whole[first:], strict=True):
            assert torch.equal(ours.images_BCHW, theirs.images_BCHW)
            assert torch.equal(ours.rows_B, theirs.rows_B)


def test_an_epoch_left_early_does_not_leak_into_the_next() -> None:
    loader = training_loader(SHAPES, DataConfig())
    whole = kept(loader.batches(1))
    for _ in loader.batches(0):
        break
    assert all(
        torch.equal(ours.images_BCHW, theirs.images_BCHW)
        for ours, theirs in zip(loader.batches(1), whole, strict=True)
    )


def test_test_images_in_memory_come_out_as_they_are() -> None:
    config = DataConfig()
    (batch,) = feature_batches(SHAPES, config, 64)
    expected = torch.from_numpy(SHAPES.store.block).view(61, 32, 32, 3).permute(0, 3, 1, 2)
    assert (pixels_of(batch, config) - expected).abs().max() < 1e-3


def test_test_images_of_files_are_torchvisions_resize_and_centre_crop(photos: ImageIndex) -> None:
    config = DataConfig(image_size=28, test_resize=32)
    batches = feature_batches(photos, config, 2)
    ours = torch.cat([pixels_of(batch, config) for batch in batches])
    for row, image in enumerate(ours):
        picture = tv.pil_to_tensor(Image.open(photos.store.name(row)).convert("RGB"))
        theirs = tv.center_crop(tv.resize(picture, [32], antialias=True), [28, 28])
        assert (image - theirs).abs().mean() < 1.5
        assert (image - theirs).abs().max() < 16


def test_crop_and_mirror_are_torchvisions(photos: ImageIndex) -> None:
    config = DataConfig(image_size=24, jitter=0.0, hue=0.0, grayscale=0.0, flip=True)
    images = images_by_row(training_batches(photos, config, 4))
    rows = np.arange(5)
    views = training_views(config, 5, 4, rows, photos.heights_N, photos.widths_N)
    for row in rows:
        picture = tv.pil_to_tensor(Image.open(photos.store.name(row)).convert("RGB"))
        box = [*views.start_B2[row].tolist(), *views.shape_B2[row].tolist()]
        theirs = tv.resized_crop(picture, *box, [24, 24], antialias=True)
        if views.flip_B[row]:
            theirs = tv.horizontal_flip(theirs)
        ours = pixels_of(Batch(images[row][None], torch.tensor([row])), config)[0]
        assert (ours - theirs).abs().mean() < 1.5


def test_colours_of_the_pipeline_are_those_of_the_maps() -> None:
    noise = np.random.default_rng(1).integers(0, 255, (3, 16, 16, 3), np.uint8)
    index = index_pixels(noise, "noise")
    config = DataConfig(image_size=16, crop_area=(1.0, 1.0))
    images = images_by_row(training_batches(index, config, 0))
    views = training_views(config, 5, 0, np.arange(3), index.heights_N, index.widths_N)
    for row in range(3):
        if views.shape_B2[row].tolist() != [16, 16]:
            continue
        pixels = noise[row].astype(np.float64)
        offset = views.colours.through_mean_B33[row] @ pixels.mean(axis=(0, 1))
        expected = np.clip(pixels @ views.colours.direct_B33[row].T + offset, 0, 255)
        ours = pixels_of(Batch(images[row][None], torch.tensor([row])), config)[0]
        assert np.abs(ours.numpy().transpose(1, 2, 0) - expected).max() < 0.51


@pytest.mark.parametrize("stored_as", ["files", "pixels"])
def test_steps_of_the_pipeline_are_torchvisions(photos: ImageIndex, stored_as: str) -> None:
    index = photos if stored_as == "files" else SHAPES
    config = DataConfig(image_size=24, flip=True, hue_model="hsv")
    plain = config.model_copy(update={"hue_model": "yiq", "jitter": 0, "hue": 0, "grayscale": 0})
    before, after = (images_by_row(training_batches(index, c, 2)) for c in (plain, config))
    rows = np.array(list(before))
    views = training_views(config, 5, 2, rows, index.heights_N[rows], index.widths_N[rows])
    for at, row in enumerate(before):
        start, ours = (
            pixels_of(Batch(images[row][None], torch.tensor([row])), config)[0]
            for images in (before, after)
        )
        theirs = 255 * by_torchvision(start / 255, views.colours, at, grayscale_first=False)
        assert (ours - theirs).abs().max() < 1


def test_a_broken_file_is_an_error_not_a_hang(tmp_path: Path) -> None:
    save_pictures(tmp_path, [(40, 40)] * 3)
    index = index_folder(tmp_path).index
    (tmp_path / "1.jpg").unlink()
    with pytest.raises(RuntimeError, match=r"1\.jpg"):
        training_batches(index, DataConfig(image_size=16), 0)
