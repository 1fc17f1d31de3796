"""Whole runs: equal to the bit, resumed to the bit, one curve at every world size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from and_dist.config import Config
from and_dist.world import World
from tests.ranks.pool import RankError, RankPool
from tests.ranks.runs import (
    assert_equal_to_the_bit,
    checkpoint_of,
    debug_config,
    losses_of,
    metrics_of,
    train,
    train_until,
)

GOLDEN = Path(__file__).with_name("golden_debug_losses.json")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_debug_run_follows_the_golden_curve(ranks: RankPool, tmp_path: Path, size: int) -> None:
    """Seen: 3e-7 between worlds. The bound leaves room for another machine's arithmetic."""
    ranks.run(size, train, config := debug_config(tmp_path))
    golden = torch.tensor(json.loads(GOLDEN.read_text())["loss"])
    losses = losses_of(config.folder)
    assert losses.shape == golden.shape
    assert ((losses - golden).abs() / golden).max() < 1e-4


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("epochs", [1, 3, 5])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    ranks: RankPool, tmp_path: Path, size: int, epochs: int
) -> None:
    whole, broken = debug_config(tmp_path, "name=whole"), debug_config(tmp_path, "name=broken")
    ranks.run(size, train, whole)
    ranks.run(size, train_until, broken, epochs)
    ranks.run(size, train, broken)
    assert_equal_to_the_bit(broken.folder, whole.folder)


def test_two_runs_are_equal_to_the_bit(ranks: RankPool, tmp_path: Path) -> None:
    first, second = debug_config(tmp_path, "name=first"), debug_config(tmp_path, "name=second")
    for config in (first, second):
        ranks.run(2, train, config)
    assert_equal_to_the_bit(first.folder, second.folder)


def test_a_finished_run_started_again_changes_nothing(ranks: RankPool, tmp_path: Path) -> None:
    config = debug_config(tmp_path, "curriculum.epochs=1", "curriculum.rounds=1")
    ranks.run(2, train, config)
    before = metrics_of(config.folder), checkpoint_of(config.folder)
    ranks.run(2, train, config)
    assert metrics_of(config.folder) == before[0]
    assert checkpoint_of(config.folder).keys() == before[1].keys()


def test_a_checkpoint_continues_at_other_world_sizes(ranks: RankPool, tmp_path: Path) -> None:
    whole = debug_config(tmp_path, "name=whole")
    ranks.run(1, train, whole)
    for before, after in [(4, 1), (1, 3), (3, 4)]:
        config = debug_config(tmp_path, f"name=from{before}to{after}")
        ranks.run(before, train_until, config, 5)
        ranks.run(after, train, config)
        difference = (losses_of(config.folder) - losses_of(whole.folder)).abs()
        assert difference.max() < 1e-4  # seen 2.4e-6


def test_batch_norm_statistics_survive(ranks: RankPool, tmp_path: Path) -> None:
    options = ("encoder.name=small", "data.limit=60", "curriculum.rounds=1", "curriculum.epochs=3")
    whole = debug_config(tmp_path, "name=whole", *options)
    broken = debug_config(tmp_path, "name=broken", *options)
    ranks.run(2, train, whole)
    ranks.run(2, train_until, broken, 4)
    ranks.run(2, train, broken)
    assert_equal_to_the_bit(broken.folder, whole.folder)
    means = [t for n, t in checkpoint_of(whole.folder).items() if n.endswith("running_mean")]
    assert len(means) == 4
    assert all(mean.abs().max() > 0 for mean in means)


def test_instance_learning_has_no_anchors(ranks: RankPool, tmp_path: Path) -> None:
    config = debug_config(tmp_path, "method=instance", "curriculum.epochs=1")
    ranks.run(1, train, config)
    rounds = [r for r in metrics_of(config.folder) if r["event"] == "round"]
    assert [(r["anchors"], r["consistency"]) for r in rounds] == [(0, None)] * 3


def test_rounds_take_their_share_of_anchors(ranks: RankPool, tmp_path: Path) -> None:
    config = debug_config(tmp_path, "curriculum.epochs=1", "data.limit=51")
    ranks.run(2, train, config)
    rounds = [r for r in metrics_of(config.folder) if r["event"] == "round"]
    assert [r["anchors"] for r in rounds] == [0, 25, 51]


def test_a_loss_that_is_not_finite_stops_the_run(ranks: RankPool, tmp_path: Path) -> None:
    config = debug_config(tmp_path, "optim.lr=1.0e+30", "curriculum.epochs=2")
    with pytest.raises(RankError) as caught:
        ranks.run(2, train, config)
    assert sorted(caught.value.errors) == [0, 1]
    sentence = str(caught.value.errors[1])
    assert "the loss is not finite at round 0, epoch 0, step" in sentence
    (record,) = [r for r in metrics_of(config.folder) if r["event"] == "non_finite"]
    assert str(record["rows"][0]) in sentence
    assert len(record["rows"]) == 48


def test_the_last_good_checkpoint_outlives_a_loss_that_is_not_finite(
    ranks: RankPool, tmp_path: Path
) -> None:
    config = debug_config(tmp_path)
    ranks.run(2, train_until, config, 3)
    good = checkpoint_of(config.folder)
    with pytest.raises(RankError, match="not finite at round 0, epoch 2"):
        ranks.run(2, train_with_bad_images, config)
    assert all(torch.equal(good[k].nan_to_num(0), v.nan_to_num(0))
               for k, v in checkpoint_of(config.folder).items())  # fmt: skip
    ranks.run(2, train, config)


def train_with_bad_images(world: World, config: Config) -> None:
    train(world, config.model_copy(update={"data": config.data.model_copy(
        update={"std": (1e-36, 1e-36, 1e-36)})}))  # fmt: skip


def test_other_images_are_refused(ranks: RankPool, tmp_path: Path) -> None:
    config = debug_config(tmp_path, "curriculum.epochs=1", "curriculum.rounds=1")
    ranks.run(1, train, config)
    other = debug_config(tmp_path, "curriculum.epochs=1", "curriculum.rounds=1", "data.limit=199")
    with pytest.raises(RankError, match="was trained on other images"):
        ranks.run(1, train, other)
