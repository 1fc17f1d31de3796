"""data.cache_gb: the same images from shared memory, one copy for all ranks of a node."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from and_dist.config.schema import DataConfig
from and_dist.data.cache import SHARED_MEMORY, cache_in_memory, check_cache
from and_dist.data.datasets import index_folder
from and_dist.data.loader import TrainingLoader
from and_dist.data.order import Order
from and_dist.data.unreadable import BadImages
from and_dist.distributed.world import World
from benchmarks.common.rank_pool import RankPool
from tests.loading import images_by_row
from tests.pictures import save_pictures

COUNT = 23


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = [(40 + number, 60 - number) for number in range(COUNT)]
    return save_pictures(tmp_path_factory.mktemp("images"), sizes, quality=95)


def images_of(world: World, folder: Path, config: DataConfig) -> tuple[dict[int, Tensor], str]:
    index = index_folder(folder).index
    bad = BadImages(index, "skip", lambda _: None)
    index = cache_in_memory(index, config, world, bad)
    batches = TrainingLoader(index, config, Order(COUNT, 6, 0), world, bad).batches(1)
    images = images_by_row(batches)
    return images, index.store.kind


@pytest.mark.parametrize("size", [1, 3])
def test_cached_images_are_the_images(ranks: RankPool, folder: Path, size: int) -> None:
    """Pillow fills the cache and DALI reads files: their JPEG decoders differ by a level or two."""
    config = DataConfig(image_size=16)
    plain = ranks.run(size, images_of, folder, config)
    cached = ranks.run(size, images_of, folder, config.model_copy(update={"cache_gb": 0.1}))
    assert {kind for _, kind in cached} == {"pixels"}
    for (ours, _), (theirs, _) in zip(cached, plain, strict=True):
        assert ours.keys() == theirs.keys()
        assert max((ours[row] - theirs[row]).abs().max().item() for row in ours) < 0.1


def test_smaller_images_are_kept_smaller(ranks: RankPool, folder: Path) -> None:
    config = DataConfig(image_size=16, cache_gb=0.1, cache_side=20)
    ((images, _),) = ranks.run(1, images_of, folder, config)
    assert len(images) == COUNT


def test_nothing_is_left_in_shared_memory(ranks: RankPool, folder: Path) -> None:
    ranks.run(2, images_of, folder, DataConfig(image_size=16, cache_gb=0.1))
    assert list(SHARED_MEMORY.glob("and-dist-*")) == []


def test_a_cache_that_is_too_small_is_refused_with_what_it_would_take(folder: Path) -> None:
    index = index_folder(folder).index
    with pytest.raises(ValueError, match=r"data\.cache_gb=1e-05 is too little for 23 .* 0\.00 GB"):
        check_cache(index, DataConfig(cache_gb=1e-5))
    check_cache(index, DataConfig(cache_gb=0.1))


def test_a_broken_image_is_left_out_of_the_cache(ranks: RankPool, tmp_path: Path) -> None:
    save_pictures(tmp_path, [(30, 30)] * COUNT, suffixes=["png"])
    broken = tmp_path / "07.png"
    broken.write_bytes(broken.read_bytes()[:50])
    ((images, _),) = ranks.run(1, images_of, tmp_path, DataConfig(image_size=16, cache_gb=0.1))
    assert images.keys() == set(range(COUNT)) - {7}
    assert torch.isfinite(images[0]).all()
