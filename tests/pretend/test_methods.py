"""Train and evaluate every method the way of a GPU, and compare it with a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from and_dist.config.schema import OBJECTIVES
from and_dist.distributed.watchdog import Watchdog
from and_dist.distributed.world import open_world
from and_dist.evaluation.evaluate_run import Request, plan_evaluation, run_evaluation
from and_dist.runs.console import Display
from and_dist.training.session import run_training
from tests.pretend.device import pretend_gpu
from tests.pretend.runs import config_for, train_on, waits_of_steps
from tests.ranks.runs import losses_of

pytestmark = pytest.mark.nightly

LINEAR = ("evaluation.linear.epochs=1", "evaluation.linear.milestones=[1]")
BOUND = 1e-5
"""The bound on the relative difference of losses; measured 4e-7."""
TWO_IMAGES = 2.5 / 96
"""The bound on how many of 96 test images are seen otherwise; measured none."""


def overrides_of(method: str) -> tuple[str, ...]:
    """Return a short run of one method, sized for 200 images."""
    return (
        f"method={method}",
        "instance_nce.negatives=64",
        "deepcluster.clusters=12",
        "curriculum.rounds=1",
        "curriculum.epochs=2",
        "evaluation.baselines=false",
    )


def assess(run: Path, device: str) -> dict[str, Any]:
    """Evaluate a run by kNN and by linear classifiers; return both files."""
    planned = plan_evaluation(run, None, LINEAR, Request(with_knn=True, with_linear=True))
    with Watchdog() as watchdog, open_world(device, threads=1) as world:
        run_evaluation(planned, world, Display(is_shown=False), watchdog)
    (folder,) = (run / "evaluation").iterdir()
    return {kind: json.loads((folder / f"{kind}.json").read_text()) for kind in ("knn", "linear")}


@pytest.mark.parametrize("method", [m for m in OBJECTIVES if m != "random"])
def test_every_method_trains_and_is_evaluated(tmp_path: Path, method: str) -> None:
    overrides = overrides_of(method)
    on_cpu = train_on("cpu", tmp_path, *overrides)
    expected = assess(on_cpu, "cpu")
    config = config_for("cuda", tmp_path, *overrides)
    with pretend_gpu():
        with Watchdog() as watchdog:
            run_training(config, watchdog, "quiet")
        found = assess(config.folder, "cuda")
    losses, expected_losses = losses_of(config.folder), losses_of(on_cpu)
    assert ((losses - expected_losses) / expected_losses).abs().max() < BOUND
    for kind, figures in expected.items():
        assert figures["of"].keys() == found[kind]["of"].keys()
        for name, wanted in figures["of"].items():
            assert abs(found[kind]["of"][name]["top1"] - wanted["top1"]) < TWO_IMAGES


@pytest.mark.parametrize("method", ["instance", "deepcluster", "supervised"])
def test_a_step_of_these_methods_never_makes_the_host_wait(tmp_path: Path, method: str) -> None:
    """NAT assigns its targets on the CPU, and instance_nce draws until no row is drawn twice."""
    waits = waits_of_steps(tmp_path, *overrides_of(method))
    assert waits.num_steps == 20
    assert waits.between_epochs
    assert not waits.within_epochs
