"""Batches that take more memory than data.decode_mb are decoded in parts, and come out the same."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from and_dist.config.schema import DataConfig
from and_dist.data.datasets import index_folder
from and_dist.data.index import ImageIndex, open_manifest
from and_dist.data.loader import Batch, FeatureLoader, TrainingLoader
from and_dist.data.order import Order
from and_dist.data.pipeline import ImagePipeline, PendingBatch
from and_dist.data.transcode import PackOptions
from and_dist.data.unreadable import BadImages
from tests.loading import CPU, kept, world_of
from tests.pictures import save_pictures
from tests.unit.data.preparing import run

SIDES = [(600, 500), (60, 50), (700, 420), (10, 9), (590, 510), (300, 300), (64, 64), (700, 640)]
"""(width, height): the four large ones take 0.9 to 1.3 MB, all together 4.3."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("large")
    save_pictures(base / "images", SIDES, suffixes=("jpg", "png", "gif", "bmp"))
    run(base / "images", base / "raw", PackOptions(raw=500))
    return base


@pytest.mark.parametrize("model", ["yiq", "hsv"])
@pytest.mark.parametrize("kind", ["files", "pixels"])
def test_parts_of_a_training_batch_equal_the_whole_to_the_bit(
    folder: Path, kind: str, model: Literal["yiq", "hsv"]
) -> None:
    """With 625 pixels an image, so that some begin and end within a vector of the processor."""
    index = stored(folder, kind)
    order = Order(len(index), len(index), 0)
    both = []
    for decode_mb in (1000, 2):
        config = DataConfig(image_size=25, decode_mb=decode_mb, flip=True, hue_model=model)
        loader = TrainingLoader(index, config, order, world_of(), BadImages(index, "stop"))
        parts = list(loader._stream._parts_of(order.local_rows(0, 0, 0, 1)))
        assert (len(parts) > 1) == (decode_mb == 2)
        both.append(kept(batch for epoch in range(8) for batch in loader.batches(epoch)))
    for whole, in_parts in zip(*both, strict=True):
        assert torch.equal(in_parts.images_BCHW, whole.images_BCHW)
        assert torch.equal(in_parts.rows_B, whole.rows_B)


def stored(folder: Path, kind: str) -> ImageIndex:
    if kind == "files":
        return index_folder(folder / "images").index
    return open_manifest(folder / "raw" / "train").index


def batches(index: ImageIndex, decode_mb: int, policy: Literal["stop", "skip"]) -> list[Batch]:
    config = DataConfig(image_size=24, decode_mb=decode_mb)
    bad = BadImages(index, policy, lambda _: None, largest_share=1.0)
    loader = FeatureLoader(index, config, 8, CPU, bad)
    return kept(loader.batches(np.arange(len(index))))


@pytest.mark.parametrize("kind", ["files", "pixels"])
def test_parts_of_a_batch_equal_the_whole_to_the_bit(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = stored(folder, kind)
    at_once = []
    decide = ImagePipeline._next_batch

    def noted(pipeline: ImagePipeline) -> PendingBatch:
        batch = decide(pipeline)
        at_once.append([other.num_bytes for other in (*pipeline.in_flight, batch)])
        return batch

    monkeypatch.setattr(ImagePipeline, "_next_batch", noted)
    (whole,) = batches(index, 1000, "stop")
    assert len(at_once[0]) == 1
    at_once.clear()
    (parts,) = batches(index, 2, "stop")
    assert torch.equal(parts.images_BCHW, whole.images_BCHW)
    assert torch.equal(parts.rows_B, whole.rows_B)
    large = [[size for size in sizes if size > 1000] for sizes in at_once]
    assert max(map(len, large)) >= 1
    assert all(sum(sizes) <= 2e6 for sizes in large if len(sizes) > 1)


def test_an_image_that_alone_takes_more_is_bad(folder: Path) -> None:
    sentence = r"7\.bmp: 640 x 700 pixels take 1\.3 MB when .* data\.decode_mb=1 allows less"
    with pytest.raises(ValueError, match=sentence):
        index_folder(folder / "images", decode_mb=1)
    assert len(index_folder(folder / "images", "skip", decode_mb=1).index) == 7
    index = index_folder(folder / "images").index
    with pytest.raises(RuntimeError, match=sentence):
        batches(index, 1, "stop")
    (batch,) = batches(index, 1, "skip")
    assert batch.rows_B.tolist() == [0, 1, 2, 3, 4, 5, 6, -1]
