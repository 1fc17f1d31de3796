from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from and_dist.config import Config, load_config
from and_dist.encoders import ENCODERS
from and_dist.plan import COSTS, count_rows, make_plan, measured_images_per_s


def config(*overrides: str) -> Config:
    return load_config(["configs/debug.yaml"], overrides)


def test_every_encoder_has_a_cost() -> None:
    assert COSTS.keys() == ENCODERS.keys()


@pytest.mark.parametrize("name", sorted(COSTS))
def test_costs_are_those_of_the_networks(name: str) -> None:
    encoder, cost = ENCODERS[name](128).eval(), COSTS[name]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(1, 3, cost.side, cost.side))
    assert sum(p.numel() for p in encoder.parameters()) == cost.parameters
    assert counter.get_total_flops() / 2 == pytest.approx(cost.multiplications, rel=0.01)


def test_memory_of_a_rank_is_its_share_of_the_bank_and_the_whole_encoder() -> None:
    plan = make_plan(config("data.limit=1000", "bank.dtype=float16"), 3, "cpu")
    assert plan.num_rows == 1000
    assert plan.bank_bytes == 334 * 128 * 2
    assert plan.encoder_bytes == 16 * COSTS["tiny"].parameters


def test_an_epoch_is_predicted_from_a_published_rate_and_shrinks_with_ranks() -> None:
    alone = make_plan(config("encoder.name=alexnet", "data.image_size=224"), 1, "a100")
    shared = make_plan(config("encoder.name=alexnet", "data.image_size=224"), 4, "a100")
    assert alone.epoch_seconds is not None
    assert shared.epoch_seconds is not None
    assert shared.epoch_seconds < alone.epoch_seconds
    assert "published" in alone.source


def test_without_a_rate_nothing_is_predicted() -> None:
    plan = make_plan(config(), 2, None)
    assert plan.epoch_seconds is None
    assert "`gpu`" in plan.source


def test_what_the_run_has_measured_wins(tmp_path: Path) -> None:
    run = config(f"run.root={tmp_path}")
    run.folder.mkdir()
    steps = [{"event": "step", "step": n, "images_per_s": 100.0} for n in range(5)]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
    (run.folder / "environment.json").write_text(json.dumps([{"world_size": 2}]))
    assert measured_images_per_s(run.folder, 2) == 100.0
    assert measured_images_per_s(run.folder, 4) is None
    assert make_plan(run, 2, None).epoch_seconds == pytest.approx(200 / 100.0)


def test_rows_are_counted_without_reading_an_image(tmp_path: Path) -> None:
    assert count_rows(config("data.limit=null").data) == 2000
    assert count_rows(config(f"data.train={tmp_path}/nowhere").data) is None
    (tmp_path / "a").mkdir()
    for number in range(3):
        pixels = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
        pixels.save(tmp_path / "a" / f"{number}.png")
    (tmp_path / "a" / "empty.png").write_bytes(b"")
    assert count_rows(config(f"data.train={tmp_path}").data) == 4


@pytest.mark.parametrize(
    ("overrides", "ranks", "rate", "sentence"),
    [
        (["encoder.name=vgg"], 1, "cpu", "encoder.name='vgg' is not one of: tiny, small"),
        (["data.limit=3"], 4, "cpu", "has 3 images for 4 ranks"),
        ([], 1, "b200", "gpu: b200 is not one of: v100, a100, cpu"),
    ],
)
def test_what_cannot_be_trained_is_a_sentence(
    overrides: list[str], ranks: int, rate: str, sentence: str
) -> None:
    with pytest.raises(ValueError) as refused:
        make_plan(config(*overrides), ranks, rate)
    assert sentence in str(refused.value)
