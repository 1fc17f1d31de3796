"""The three whole runs of `make test`, started by and-launch as a user starts them.

tests/suites.py names them. Every other way to start a run is tried by `make test-all`.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from launcher.status import look_at
from slurm.testcluster.cluster import PATIENCE
from tests.conftest import Cli
from tests.end_to_end.launching import launch, ranks_of, start, wait_for_step
from tests.pictures import save_pictures
from tests.ranks.runs import difference, losses_of

pytestmark = pytest.mark.whole_run

TWO_NODES = ("local", "--config", "configs/debug.yaml", "run.threads=1", "--nodes", 2)
GOLDEN = Path(__file__).parents[1] / "ranks" / "golden_debug_losses.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nodes of one rank each, which nothing disturbs."""
    root = tmp_path_factory.mktemp("whole")
    status, said = launch(*TWO_NODES, f"run.root={root}", "name=whole")
    assert status == 0, said
    assert "round 2 done" in said
    assert "finished, trained to its end" in said
    return root / "whole"


def test_a_run_of_two_nodes_learns_what_it_always_learned(whole: Path) -> None:
    golden = json.loads(GOLDEN.read_text())["loss"]
    losses = losses_of(whole).tolist()
    assert losses == pytest.approx(golden, abs=1e-4)
    assert json.loads((whole / "summary.json").read_text())["rounds"]
    status, said = launch("status", whole)
    assert status == 0
    assert "finished" in said


def test_a_killed_rank_is_started_again(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    process = start(*TWO_NODES, f"run.root={tmp_path}", "name=killed")
    wait_for_step(run, 8)
    following = start("logs", "-f", run)
    os.kill(ranks_of(run)[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert "was killed by SIGKILL; starting again" in said
    followed, _ = following.communicate(timeout=PATIENCE)
    assert following.returncode == 0, followed
    assert "finished, trained to its end" in followed
    assert difference(run, whole) == ""
    assert look_at(run).num_starts == 2


def test_a_run_has_a_report(tmp_path: Path, cli: Cli) -> None:
    for split, count in (("train", 60), ("test", 16)):
        save_pictures(tmp_path / split, [(40, 36)] * count, "xyz")
    settings = (f"data.train={tmp_path}/train", f"data.test={tmp_path}/test", "evaluation.knn=5")
    status, said = launch(
        *("local", "--config", "configs/debug.yaml", f"run.root={tmp_path}", "name=pets"),
        *(*settings, "curriculum.epochs=1", "optim.milestones=[]", "run.threads=1"),
    )
    assert status == 0, said
    status, said, _ = cli("report", tmp_path / "pets")
    assert status == 0, said
    page = (tmp_path / "pets" / "report.html").read_text()
    assert "<title>pets" in page
    assert "data:image/" in page
