"""Folders that an earlier revision wrote (tests/fixtures) are resumed, reported on and listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import Cli
from tests.end_to_end.launching import launch
from tests.end_to_end.processes import DEBUG, finish, start, start_ranks
from tests.ranks.runs import losses_of

pytestmark = pytest.mark.whole_run
FIXTURES = Path(__file__).parents[1] / "fixtures"
GOLDEN = json.loads((FIXTURES / "golden.json").read_text())
"""Figures of the runs as they would have been without a pause, at the revision that began them."""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Copy the folders, which are then moved runs: their config.yaml names another root."""
    return shutil.copytree(FIXTURES, tmp_path / "runs")


def assert_golden(run: Path) -> None:
    """Compare every step's loss with the golden one, within what another machine may round."""
    golden = torch.tensor(GOLDEN["losses"][run.name])
    losses = losses_of(run)
    assert losses.shape == golden.shape
    assert ((losses - golden).abs() / golden).max() < 1e-4


def test_a_run_of_an_earlier_revision_is_resumed_and_reported_on(runs: Path, cli: Cli) -> None:
    run = runs / "and"
    status, said = finish(start(*DEBUG, f"run.root={runs}", "name=and", "run.threads=1"))
    assert status == 0, said
    assert "continuing from" in said
    assert "r01-e0001-s000002" in said
    assert_golden(run)
    # What the run has chosen since is not what a checkpoint of before says, which is `auto`.
    assert "products: stored" in (run / "config.yaml").read_text()
    status, said, error = cli("evaluate", run, "--checkpoint", "r00-e0003", "--knn")
    assert status == 0, error
    status, said, error = cli("report", run)
    assert (status, error) == (0, "")
    assert "report.html" in said
    assert 'id="h-neighbourhoods"' in (run / "report.html").read_text()


def test_deepcluster_of_an_earlier_revision_is_resumed_on_two_ranks(runs: Path) -> None:
    options = ("method=deepcluster", "deepcluster.clusters=12", "run.threads=1")
    ranks = start_ranks(2, *DEBUG, f"run.root={runs}", "name=deepcluster", *options)
    for status, said in map(finish, ranks):
        assert status == 0, said
    assert_golden(runs / "deepcluster")


def test_a_paused_linear_evaluation_of_an_earlier_revision_is_resumed(runs: Path) -> None:
    status, said = finish(start("evaluate", runs / "and", "--linear"))
    assert status == 0, said
    assert "continuing" in said
    (written,) = (runs / "and" / "evaluation").glob("*/linear.json")
    layers = json.loads(written.read_text())["of"]
    for name, losses in GOLDEN["linear"].items():
        assert layers[name]["losses"] == pytest.approx(losses, rel=1e-4)


def test_a_job_of_an_earlier_revision_is_listed(runs: Path) -> None:
    status, said = launch("status", runs / "job")
    assert status == 0
    assert "cancelled" in said
    assert "2 node(s) of 1 rank(s), 2 start(s)" in said
    assert "last end: cancelled, it was cancelled" in said
    status, said = launch("logs", runs / "job")
    assert status == 0
    assert "cancelled: it was cancelled" in said
    assert "continuing from" in said
