"""By sense: objects pasted at known places draw more of the attention after training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from and_dist.checkpoint.reader import load_encoder, open_checkpoint
from and_dist.config.load import load_config
from and_dist.data.datasets import load_images
from and_dist.data.shapes import SHAPES
from and_dist.distributed.watchdog import Watchdog
from and_dist.distributed.world import open_world
from and_dist.evaluation.image_reader import ImageReader
from and_dist.models.encoders import Encoder, build_encoder
from and_dist.report.grad_cam import attend
from and_dist.training.session import run_training
from tests.pictures import save

pytestmark = pytest.mark.thorough

COUNT, SIDE, OBJECT, KINDS = 400, 32, 14, 4
LOOKED_AT = 64


def draw(label: int, random: np.random.Generator) -> tuple[np.ndarray, tuple[int, int]]:
    """A black or white shape, turned, at a random place of a coloured ground with noise."""
    ramp, angle = np.linspace(-1, 1, SIDE), 2 * np.pi * random.random()
    slope_HW = np.cos(angle) * ramp[None] + np.sin(angle) * ramp[:, None]
    mix_HW1 = np.clip(0.5 + 0.5 * slope_HW, 0, 1)[..., None]
    ground_HW3 = 0.35 + 0.3 * (mix_HW1 * random.random(3) + (1 - mix_HW1) * random.random(3))
    image_HW3 = ground_HW3 + 0.25 * (random.random((SIDE, SIDE, 3)) - 0.5)
    places, turn = np.linspace(-1.1, 1.1, OBJECT), 2 * np.pi * random.random()
    u = np.cos(turn) * places[None] + np.sin(turn) * places[:, None]
    v = np.cos(turn) * places[:, None] - np.sin(turn) * places[None]
    cover_hw1 = np.clip(0.5 - 6 * list(SHAPES.values())[label](u, v), 0, 1)[..., None]
    top, left = random.integers(1, SIDE - OBJECT - 1, 2)
    under = image_HW3[top : top + OBJECT, left : left + OBJECT]
    under[:] = cover_hw1 * random.choice([0.05, 0.95]) + (1 - cover_hw1) * under
    return np.clip(255 * image_HW3, 0, 255).astype(np.uint8), (int(top), int(left))


def share_on_objects(
    encoder: Encoder,
    album: ImageReader,
    pairs: list[tuple[int, int]],
    places: list[tuple[int, int]],
) -> float:
    """Of the maps' mass, that within the object's square; mean over the images."""
    images = album.load(row for pair in pairs for row in pair)
    looked_BCHW, others_BCHW = (
        torch.stack([images[pair[side]] for pair in pairs]) for side in (0, 1)
    )
    with torch.no_grad():
        targets_BD = encoder.eval()(others_BCHW)
    maps_BHW, _ = attend(encoder, looked_BCHW, targets_BD)
    shares = []
    for (row, _), map_HW in zip(pairs, maps_BHW, strict=True):
        top, left = places[row]
        inside = map_HW[top : top + OBJECT, left : left + OBJECT].sum()
        shares.append(float(inside / map_HW.sum().clamp(min=1e-9)))
    return float(np.mean(shares))


def test_attention_moves_to_the_object(tmp_path: Path) -> None:
    """Against another image of the same class, before and after training without labels."""
    random = np.random.default_rng(0)
    places = []
    for row in range(COUNT):
        pixels, place = draw(row * KINDS // COUNT, random)
        folder = tmp_path / "images" / f"kind {row * KINDS // COUNT}"
        save(folder / f"{row:03}.png", Image.fromarray(pixels))
        places.append(place)
    config = load_config(
        ["configs/debug.yaml"],
        [
            f"run.root={tmp_path}",
            f"data.train={tmp_path}/images",
            "data.test=null",
            "data.limit=null",
            "data.crop_area=[0.6,1.0]",
            "encoder.name=small",
            "curriculum.rounds=1",
            "curriculum.epochs=20",
            "optim.milestones=[16]",
            "optim.lr=0.06",
            "optim.batch_size=64",
            "run.log_every=100",
            "run.threads=1",
        ],
    )
    run_training(config, Watchdog(), "quiet")
    images = load_images(config.data.train, None, "data.train")
    of_class = COUNT // KINDS
    pairs = [
        (row, (row // of_class) * of_class + int(random.integers(of_class)))
        for row in range(0, COUNT, COUNT // LOOKED_AT)
    ]
    with open_world("cpu") as world:
        album = ImageReader(images, config.data, world.device)
        untrained = build_encoder(config.encoder, config.seed)
        before = share_on_objects(untrained, album, pairs, places)
        encoder = load_encoder(open_checkpoint(config.folder), world)
        after = share_on_objects(encoder, album, pairs, places)
    area = (OBJECT / SIDE) ** 2
    print(f"on the object: {before:.3f} before, {after:.3f} after training, its area {area:.3f}")
    assert after > 1.3 * before
    assert after > area
