"""What happens to all ranks when one of them fails for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from and_dist.distributed.watchdog import Watchdog
from slurm.testcluster.cluster import PATIENCE
from tests.end_to_end import starved
from tests.end_to_end.processes import (
    DEBUG,
    ENDLESS,
    finish,
    start_ranks,
    starts,
    steps,
    wait_until,
)
from tests.ranks.runs import debug_config

pytestmark = pytest.mark.whole_run

SECONDS_TO_END = 10


@pytest.fixture(scope="module")
def wide_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose bank takes 32 MB, so that there is something to run out of."""
    from and_dist.training.session import run_training

    config = debug_config(
        tmp_path_factory.mktemp("wide"),
        "encoder.feature_dim=4096",
        "data.limit=2000",
        "curriculum.rounds=1",
        "curriculum.epochs=1",
        "evaluation.baselines=false",
    )
    run_training(config, Watchdog())
    return config.folder


@pytest.mark.timed
@pytest.mark.parametrize(
    ("place", "search", "sentence"),
    [
        ("scan", "Flat", "the scan of the bank failed on rank 1: "),
        ("index", "HNSW32", "building the search index failed on rank 1: "),
    ],
)
def test_a_rank_out_of_memory_ends_all_in_seconds_and_one_speaks(
    wide_run: Path, at_most: Callable[[float], float], place: str, search: str, sentence: str
) -> None:
    command = (place, "discover", wide_run, f"discovery.search={search}", "run.threads=1")
    ranks = start_ranks(2, *command, program=starved.main_on_little_memory)
    said = next(line for line in ranks[0].stdout if line.startswith("and-dist: "))
    said_at = time.monotonic()
    (first, rest), second = (finish(rank) for rank in ranks)
    assert time.monotonic() - said_at < at_most(SECONDS_TO_END)
    assert sentence in said
    assert "emory" in said or "bad_alloc" in said
    assert (first, second) == (1, (1, ""))
    assert "and-dist: " not in rest


@pytest.mark.parametrize(
    "reason", [pytest.param("the time limit", marks=pytest.mark.nightly), "SIGUSR2"]
)
def test_torchrun_does_not_start_anew_what_was_told_to_end(tmp_path: Path, reason: str) -> None:
    limit = "0:40" if reason == "the time limit" else "1:00:00"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--max-restarts=3",
        "-m",
        "and_dist",
        *DEBUG,
        *ENDLESS,
        f"run.root={tmp_path}",
        f"run.time_limit={limit}",
        "run.threads=1",
    ]
    with subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        if reason == "SIGUSR2":
            wait_until(lambda: steps(tmp_path / "debug") > 5, process)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            os.kill(int(children.split()[-1]), signal.SIGUSR2)
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert f"stopped by {reason}, saved as r00-" in output
    assert len(starts(tmp_path / "debug")) == 1
