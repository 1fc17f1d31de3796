"""Send whole training runs the way of a GPU: their losses, waits and resumption."""

from __future__ import annotations

from pathlib import Path

import pytest

from and_dist.distributed.watchdog import Watchdog
from and_dist.distributed.world import open_world
from and_dist.training.session import run_training
from tests.pretend.device import pretend_gpu
from tests.pretend.runs import SHORT, config_for, train_on, waits_of_steps
from tests.ranks.runs import assert_equal_to_the_bit, losses_of, metrics_of, train, train_until
from tests.recipes import COMPARED, RECIPES

BOUND = 1e-5
"""A bound on float32 losses of 2 to 6; measured 1.4e-6. Fused operators sum in another order."""


def most_apart(ours: Path, theirs: Path) -> float:
    """Return the largest difference between the losses of two runs of equally many steps."""
    return float((losses_of(ours) - losses_of(theirs)).abs().max())


def test_a_short_run_loses_what_it_loses_on_a_cpu(tmp_path: Path) -> None:
    on_cpu, on_gpu = (train_on(device, tmp_path, *SHORT) for device in ("cpu", "cuda"))
    assert most_apart(on_gpu, on_cpu) < BOUND
    assert len(losses_of(on_gpu)) == 10


@pytest.mark.nightly
def test_the_debug_run_loses_what_it_loses_on_a_cpu(tmp_path: Path) -> None:
    on_cpu, on_gpu = (train_on(device, tmp_path) for device in ("cpu", "cuda"))
    assert most_apart(on_gpu, on_cpu) < BOUND
    assert [record["event"] for record in metrics_of(on_gpu)] == [
        record["event"] for record in metrics_of(on_cpu)
    ]


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("encoder", "bank", "bound"),
    [("bfloat16", "bfloat16", 3e-2), ("float32", "float16", 1e-3)],
)
def test_a_run_in_16_bits_follows_the_cpu(
    tmp_path: Path, encoder: str, bank: str, bound: float
) -> None:
    """The CPU rounds what it multiplies elsewhere than the fused operator; measured 1e-2, 2e-4."""
    overrides = (*SHORT, f"encoder.precision={encoder}", f"bank.dtype={bank}")
    on_cpu, on_gpu = (train_on(device, tmp_path, *overrides) for device in ("cpu", "cuda"))
    assert most_apart(on_gpu, on_cpu) < bound


@pytest.mark.nightly
def test_an_interrupted_run_resumes_to_the_bit(tmp_path: Path) -> None:
    whole = train_on("cuda", tmp_path / "whole")
    resumed = config_for("cuda", tmp_path / "resumed")
    with pretend_gpu(), open_world("cuda", threads=1) as world:
        train_until(world, resumed, epochs=5)
    with pretend_gpu(), open_world("cuda", threads=1) as world:
        train(world, resumed)
    assert_equal_to_the_bit(resumed.folder, whole)


def test_a_step_that_does_not_log_never_makes_the_host_wait(tmp_path: Path) -> None:
    waits = waits_of_steps(tmp_path, *SHORT)
    assert waits.num_steps == 10
    assert waits.between_epochs  # where a run logs, saves and evaluates, so that they can be seen
    assert not waits.within_epochs


def test_a_step_within_an_epoch_logs_without_a_wait(tmp_path: Path) -> None:
    """Loss and speed are asked for and read a step later, when the GPU has long got there."""
    waits = waits_of_steps(tmp_path, *SHORT, log_every=2)
    assert waits.between_epochs
    assert not waits.within_epochs
    metrics = metrics_of(tmp_path / "cuda")
    steps = [record["step"] for record in metrics if record["event"] == "step"]
    assert steps == [2, 4, 5, 7, 9, 10]


@pytest.mark.thorough
@pytest.mark.parametrize("name", RECIPES)
def test_another_recipe_follows_the_cpu_without_a_wait(tmp_path: Path, name: str) -> None:
    recipe = (*SHORT, *RECIPES[name])
    on_cpu = losses_of(train_on("cpu", tmp_path, *recipe))
    waits = waits_of_steps(tmp_path, *recipe, log_every=1)
    assert waits.between_epochs
    assert not waits.within_epochs
    apart = (losses_of(tmp_path / "cuda") - on_cpu).abs()[: COMPARED.get(name)]
    assert apart.max() < 3e-5


def test_only_the_main_thread_uses_the_gpu(tmp_path: Path) -> None:
    """A thread begins on GPU 0, and would take half a gigabyte there for each rank of a node.

    So threads that write checkpoints, read images and share what ranks were asked to do are given
    memory of the host alone.
    """
    config = config_for("cuda", tmp_path, *SHORT, "run.save_minutes=0.0001")
    with pretend_gpu() as gpu, Watchdog() as watchdog:
        run_training(config, watchdog, "quiet")
    assert len(list((config.folder / "checkpoints").iterdir())) > 2
    assert gpu.threads == {"MainThread"}
