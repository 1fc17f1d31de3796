"""Load only what is needed: no torch for what answers at once, no compiler for a rank's start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from and_dist.planning.catalogue import NAMED
from benchmarks.common.rank_pool import free_port
from slurm.testcluster.cluster import PATIENCE
from tests.conftest import Cli
from tests.end_to_end.processes import DEBUG, start_ranks, wait_until

pytestmark = pytest.mark.whole_run

PROBE = """\
import sys
from and_dist.cli import main
sys.argv = ["and-dist", *sys.argv[1:]]
try:
    main()
except SystemExit as ended:
    loaded = {"torch", "torchvision", "faiss", "nvidia", "plotly"} & set(sys.modules)
    print("status", ended.code or 0, *sorted(loaded))
"""
READY = """\
import os, sys
from and_dist.cli import main
from and_dist.training.trainer import Trainer
slow, train_rounds, step = set(sys.argv.pop(1).split()), Trainer._train_rounds, Trainer.train_step
def report(trainer, what):
    print(what, trainer.progress.checkpoint_name, *sorted(slow & set(sys.modules)), flush=True)
def report_and_train(trainer):
    report(trainer, "ready at")
    train_rounds(trainer)
def step_and_report(trainer, batch):
    step(trainer, batch)
    report(trainer, "a step after")
    os._exit(0)
Trainer._train_rounds, Trainer.train_step = report_and_train, step_and_report
main()
"""
SLOW = {
    "faiss": "searches",
    "jinja2": "the report",
    "plotly": "the report",
    "scipy": "NAT's assignment",
    "sympy": "torch.compile",
    "torch._dynamo": "torch.compile",
    "torch.distributed.checkpoint": "nothing: checkpoints are written without it",
    "torchvision": "preparing published sets",
}
"""What takes long to load, and what it is for: nothing that a rank does until it is ready."""


@pytest.mark.parametrize("size", [1, 2])
def test_a_rank_that_starts_or_resumes_loads_nothing_slow(tmp_path: Path, size: int) -> None:
    quick = ("bank.init=uniform", "evaluation.baselines=false", "run.threads=1")
    # So long that it is not over before it is killed, however late that is.
    command = (*DEBUG, *quick, "curriculum.epochs=500", f"run.root={tmp_path}")
    assert ready(size, *command) == {"r00-e0000"}
    ranks = start_ranks(size, *command)
    checkpoints = tmp_path / "debug" / "checkpoints"
    wait_until(lambda: (checkpoints / "r00-e0002").exists(), ranks[0])
    for rank in ranks:
        rank.kill()
        rank.wait()
    (resumed,) = ready(size, *command)
    assert resumed >= "r00-e0001"


def ready(size: int, *command: str) -> set[str]:
    """Start ranks anew; return where they begin, having compared what they have loaded."""
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", READY, " ".join(SLOW), *command],
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(size)
    ]
    places = set()
    for rank in ranks:
        lines = rank.communicate(timeout=PATIENCE)[0].splitlines()
        (at_ready,) = [line for line in lines if line.startswith("ready at ")]
        place, *loaded = at_ready.removeprefix("ready at ").split()
        assert loaded == []
        _, *loaded = lines[-1].removeprefix("a step after ").split()
        assert loaded == []
        places.add(place)
    return places


def test_help_names_all_hardware_though_it_loads_none(cli: Cli) -> None:
    status, said, _ = cli("plan", "--help")
    assert status == 0
    assert ", ".join(NAMED) in " ".join(re.sub(r"[│|\s]+", " ", said).split())


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("--help",), 0),
        (("evaluate", "--help"), 0),
        (("plan", "--config", "configs/debug.yaml"), 0),
        (("init", "shapes/test"), 0),
        (("train",), 2),
        (("train", "optim.lr=fast", "data.train=shapes/test"), 2),
    ],
)
def test_it_loads_no_torch(arguments: tuple[str, ...], status: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == f"status {status}"
