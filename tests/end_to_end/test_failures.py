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
from tests.end_to_end.processes import DEBUG, ENDLESS, starts, steps, wait_until
from tests.ranks.runs import debug_config

pytestmark = pytest.mark.whole_run

STARVED = Path(__file__).with_name("starved.py")
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
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        str(STARVED),
        place,
        "discover",
        str(wide_run),
        f"discovery.search={search}",
        "run.threads=1",
    ]
    # Large blocks are mapped anew each time, so that none is found among freed ones.
    malloc = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    environment = {**os.environ, **malloc, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        ours, said_at = [], None
        for line in process.stderr:
            if line.startswith("and-dist: "):
                ours.append(line)
                said_at = said_at or time.monotonic()
    assert process.returncode == 1
    assert len(ours) == 1
    assert sentence in ours[0]
    assert "emory" in ours[0] or "bad_alloc" in ours[0]
    assert said_at is not None
    assert time.monotonic() - said_at < at_most(SECONDS_TO_END)


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
