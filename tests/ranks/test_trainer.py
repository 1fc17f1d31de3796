"""Whole runs: equal to the bit, resumed to the bit, one curve at every world size."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from and_dist.checkpoint.names import parse_name
from and_dist.config.schema import Config
from and_dist.data.order import Order
from and_dist.distributed.launch_env import seconds_since_start
from and_dist.distributed.watchdog import LEAST_MARGIN, Stopped, Watchdog
from and_dist.distributed.world import World
from and_dist.runs.round_pictures import read_picture
from benchmarks.common.rank_pool import RankError, RankPool
from tests.ranks.runs import (
    assert_equal_to_the_bit,
    checkpoint_of,
    debug_config,
    losses_of,
    metrics_of,
    train,
    train_poisoned,
    train_until,
    train_until_asked,
)
from tests.suites import all_pairs

GOLDEN = Path(__file__).with_name("golden_debug_losses.json")
Undisturbed = Callable[[int], Path]


@pytest.fixture(scope="module")
def undisturbed(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The folder of a run on so many ranks that nothing has disturbed; each is trained once."""

    @cache
    def of(size: int) -> Path:
        config = debug_config(tmp_path_factory.mktemp("undisturbed"))
        ranks.run(size, train, config)
        return config.folder

    return of


@pytest.mark.parametrize("size", [1, 2, 3])
def test_debug_run_follows_the_golden_curve(undisturbed: Undisturbed, size: int) -> None:
    """Seen: 3e-7 between worlds. The bound leaves room for another machine's arithmetic."""
    golden = torch.tensor(json.loads(GOLDEN.read_text())["loss"])
    losses = losses_of(undisturbed(size))
    assert losses.shape == golden.shape
    assert ((losses - golden).abs() / golden).max() < 1e-4


@pytest.mark.parametrize(("size", "epochs"), all_pairs([1, 2, 3], [1, 3, 5]))
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    ranks: RankPool, undisturbed: Undisturbed, tmp_path: Path, size: int, epochs: int
) -> None:
    broken = debug_config(tmp_path)
    ranks.run(size, train_until, broken, epochs)
    ranks.run(size, train, broken)
    assert_equal_to_the_bit(broken.folder, undisturbed(size))
    for number in (1, 2):
        assert read_picture(broken.folder, number) == read_picture(undisturbed(size), number)


@pytest.mark.parametrize("epochs", [0, 5])
def test_a_random_start_discovers_before_it_has_trained(
    ranks: RankPool, tmp_path: Path, epochs: int
) -> None:
    """The paper's comparison of initial features; it goes on like every other run."""
    start = ("curriculum.start=random", "bank.init=features")
    whole = debug_config(tmp_path, "name=whole", *start)
    broken = debug_config(tmp_path, "name=broken", *start)
    ranks.run(2, train, whole)
    metrics = metrics_of(whole.folder)
    trained = [(r["round"], r["epoch"]) for r in metrics if r["event"] == "epoch"]
    assert trained == [(round_index, epoch) for round_index in (1, 2) for epoch in range(3)]
    found = [r["round"] for r in metrics if r["event"] == "discovery"]
    assert found == [1, 2]
    assert [r["step"] for r in metrics if r["event"] == "step"] == list(range(1, 31))
    ranks.run(2, train_until, broken, epochs)
    ranks.run(2, train, broken)
    assert_equal_to_the_bit(broken.folder, whole.folder)


def test_two_runs_are_equal_to_the_bit(
    ranks: RankPool, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    second = debug_config(tmp_path)
    ranks.run(2, train, second)
    assert_equal_to_the_bit(undisturbed(2), second.folder)


def test_a_finished_run_started_again_changes_nothing(ranks: RankPool, tmp_path: Path) -> None:
    config = debug_config(tmp_path, "curriculum.epochs=1", "curriculum.rounds=1")
    ranks.run(2, train, config)
    before = metrics_of(config.folder), checkpoint_of(config.folder)
    ranks.run(2, train, config)
    assert metrics_of(config.folder) == before[0]
    assert checkpoint_of(config.folder).keys() == before[1].keys()


@pytest.mark.parametrize(
    ("size", "after"),
    [(1, 3), (4, 1), pytest.param(3, 4, marks=pytest.mark.thorough)],
)
def test_a_checkpoint_continues_at_other_world_sizes(
    ranks: RankPool, undisturbed: Undisturbed, tmp_path: Path, size: int, after: int
) -> None:
    config = debug_config(tmp_path)
    ranks.run(size, train_until, config, 5)
    ranks.run(after, train, config)
    difference = (losses_of(config.folder) - losses_of(undisturbed(1))).abs()
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


def train_and_count_graphs(world: World, config: Config) -> int:
    torch._dynamo.reset()
    train(world, config)
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.thorough
@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_a_compiled_network_learns_what_it_learns_otherwise(
    ranks: RankPool, tmp_path: Path, size: int
) -> None:
    plain = debug_config(tmp_path, "name=plain", "curriculum.epochs=1")
    compiled = debug_config(
        tmp_path, "name=compiled", "curriculum.epochs=1", "encoder.compile=true"
    )
    ranks.run(size, train, plain)
    assert min(ranks.run(size, train_and_count_graphs, compiled)) > 0
    assert checkpoint_of(compiled.folder).keys() == checkpoint_of(plain.folder).keys()
    difference = losses_of(compiled.folder) - losses_of(plain.folder)
    assert difference.abs().max() < 1e-3


def test_instance_learning_has_no_anchors(ranks: RankPool, tmp_path: Path) -> None:
    config = debug_config(tmp_path, "method=instance", "curriculum.epochs=1")
    ranks.run(1, train, config)
    rounds = [r for r in metrics_of(config.folder) if r["event"] == "round"]
    assert [(r["anchors"], r["consistency"]) for r in rounds] == [(0, None)] * 3


@pytest.mark.parametrize(("share", "anchors"), [("null", [0, 25, 51]), ("0.25", [0, 12, 25])])
def test_rounds_take_their_share_of_anchors(
    ranks: RankPool, tmp_path: Path, share: str, anchors: list[int]
) -> None:
    given = "curriculum.epochs=1", "data.limit=51", f"curriculum.share={share}"
    config = debug_config(tmp_path, *given)
    ranks.run(2, train, config)
    rounds = [r for r in metrics_of(config.folder) if r["event"] == "round"]
    assert [r["anchors"] for r in rounds] == anchors


def test_a_loss_that_is_not_finite_stops_the_run(ranks: RankPool, tmp_path: Path) -> None:
    config = debug_config(tmp_path, "optim.lr=1.0e+30", "curriculum.epochs=2")
    with pytest.raises(RankError) as caught:
        ranks.run(2, train, config)
    assert sorted(caught.value.errors) == [0, 1]
    sentence = str(caught.value.errors[1])
    assert "the loss or a gradient is not finite at round 0, epoch 0, step" in sentence
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
        ranks.run(2, train_too_fast, config)
    assert all(
        torch.equal(good[k].nan_to_num(0), v.nan_to_num(0))
        for k, v in checkpoint_of(config.folder).items()
    )
    ranks.run(2, train, config)


def train_too_fast(world: World, config: Config) -> None:
    """With a learning rate after which the next loss is NaN."""
    optim = config.optim.model_copy(update={"lr": 1e25})
    train(world, config.model_copy(update={"optim": optim}))


def test_other_images_are_refused(ranks: RankPool, tmp_path: Path) -> None:
    config = debug_config(tmp_path, "curriculum.epochs=1", "curriculum.rounds=1")
    ranks.run(1, train, config)
    other = debug_config(tmp_path, "curriculum.epochs=1", "curriculum.rounds=1", "data.limit=199")
    with pytest.raises(RankError, match="was trained on other images"):
        ranks.run(1, train, other)


@pytest.mark.parametrize(
    ("size", "asked"),
    all_pairs(
        [1, 2, 3], [(2, "r00-e0000-s000004"), (11, "r00-e0002-s000003"), (17, "r01-e0000-s000004")]
    ),
)
def test_a_run_stopped_within_an_epoch_goes_on_to_the_bit(
    ranks: RankPool, undisturbed: Undisturbed, tmp_path: Path, size: int, asked: tuple[int, str]
) -> None:
    """Five steps are an epoch; a request is carried out a step after the one it was heard in."""
    step, name = asked
    broken = debug_config(tmp_path)
    assert ranks.run(size, train_until_asked, broken, step) == [name] * size
    ranks.run(size, train, broken)
    assert_equal_to_the_bit(broken.folder, undisturbed(size))


@pytest.mark.parametrize(
    ("size", "asked"),
    all_pairs(
        [1, 3],
        [
            ("features of the training images", ""),
            ("round 1/2: discovery", "r00-e0003"),
            ("round 2/2: discovery", "r01-e0003"),
            ("kNN", ""),
        ],
    ),
)
def test_a_run_stopped_between_epochs_goes_on_to_the_bit(
    ranks: RankPool, undisturbed: Undisturbed, tmp_path: Path, size: int, asked: tuple[str, str]
) -> None:
    phase, name = asked
    broken = debug_config(tmp_path)
    assert ranks.run(size, train_until_asked, broken, -1, phase) == [name] * size
    ranks.run(size, train, broken)
    assert_equal_to_the_bit(broken.folder, undisturbed(size))


def train_up_to_a_limit(world: World, config: Config) -> str:
    """The limit counts from the process's start, and is so near that it is soon reached."""
    seconds = int(seconds_since_start(os.getpid()) + LEAST_MARGIN) + 1
    limit = {"time_limit": f"{seconds // 60}:{seconds % 60:02}"}
    run = config.run.model_copy(update=limit)
    longer = config.curriculum.model_copy(update={"epochs": 1000})
    long = config.model_copy(update={"run": run, "curriculum": longer})
    with pytest.raises(Stopped, match="the time limit"), Watchdog() as watchdog:
        train(world, long, watchdog)
    return (config.folder / "checkpoints" / "latest").read_text().strip()


def test_a_run_is_saved_and_ends_before_its_time_limit(ranks: RankPool, tmp_path: Path) -> None:
    config = debug_config(tmp_path, "evaluation.baselines=false", "bank.init=uniform")
    (name, other) = ranks.run(2, train_up_to_a_limit, config)
    assert name == other
    assert parse_name(name) > (0, 0, 0)


@pytest.mark.parametrize("phase", ["features of the test images", "kNN"])
def test_a_run_stopped_in_the_evaluation_of_an_epoch_goes_on_to_the_bit(
    ranks: RankPool, tmp_path: Path, phase: str
) -> None:
    """All steps of the epoch are done and saved, its line in the metrics is not written."""
    options = ("evaluation.every=2", "evaluation.baselines=false", "bank.init=uniform")
    whole = debug_config(tmp_path, "name=whole", *options)
    broken = debug_config(tmp_path, "name=broken", *options)
    ranks.run(2, train, whole)
    assert ranks.run(2, train_until_asked, broken, -1, phase) == ["r00-e0001-s000005"] * 2
    ranks.run(2, train, broken)
    assert_equal_to_the_bit(broken.folder, whole.folder)


@pytest.mark.thorough
def test_a_run_goes_on_within_an_epoch_at_any_number_of_ranks(
    ranks: RankPool, tmp_path: Path
) -> None:
    """The bound is the one between worlds that were never interrupted."""
    config = debug_config(tmp_path)
    for size, step in ((4, 3), (1, 8), (3, 8), (2, 9)):
        ranks.run(size, train_until_asked, config, step)
    ranks.run(4, train, config)
    golden = torch.tensor(json.loads(GOLDEN.read_text())["loss"])
    losses = losses_of(config.folder)
    assert losses.shape == golden.shape
    assert ((losses - golden).abs() / golden).max() < 1e-4


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("spoils", ["loss", "gradient"])
def test_a_batch_that_is_not_finite_is_rolled_back_and_left_out(
    ranks: RankPool, tmp_path: Path, size: int, spoils: str
) -> None:
    config = debug_config(tmp_path, "run.non_finite=roll_back", "run.log_every=3")
    ranks.run(size, train_poisoned, config, spoils)
    (found,) = [e for e in metrics_of(config.folder) if e["event"] == "rolled_back"]
    order = Order(200, 48, 0)
    assert found["rows"] == order.global_rows(3 + 1, 2).tolist()
    assert (found["round"], found["epoch"], found["step"]) == (1, 1, 2)
    assert losses_of(config.folder).isfinite().all()
    assert all(tensor.isfinite().all() for tensor in checkpoint_of(config.folder).values())
    epochs = [e for e in metrics_of(config.folder) if e["event"] == "epoch"]
    assert len(epochs) == 9
    events = EventAccumulator(str(config.folder / "tensorboard")).Reload()
    assert [image.step for image in events.Images("discovery/neighbourhoods")] == [1, 2]
    before = metrics_of(config.folder)
    ranks.run(size, train, config)  # and it stays left out where a checkpoint knows of it
    assert metrics_of(config.folder) == before


@pytest.mark.parametrize("spoils", ["loss", "gradient"])
@pytest.mark.parametrize("policy", ["run.non_finite=stop", "run.non_finite=roll_back"])
def test_what_is_never_finite_ends_the_run_and_is_not_saved(
    ranks: RankPool, tmp_path: Path, spoils: str, policy: str
) -> None:
    config = debug_config(tmp_path, policy, "optim.lr=1e30", "optim.milestones=[2]")
    with pytest.raises(RankError, match="the loss or a gradient is not finite at round 0"):
        ranks.run(2, train_poisoned, config, spoils)
    tensors = checkpoint_of(config.folder)
    assert all(t.isfinite().all() for name, t in tensors.items() if name.startswith("encoder."))
