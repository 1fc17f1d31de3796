from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.testcluster.cluster import FOLDER, Cluster, output, wait_until
from tests.slurm.jobs import CONFIG
from tests.suites import skip_without


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    if FOLDER not in os.environ:
        skip_without("a cluster")
    return Cluster.here()


@pytest.fixture(autouse=True)
def clean_cluster(cluster: Cluster) -> Iterator[None]:
    """No job before, none left after, all nodes well."""
    yield
    subprocess.run(["scancel", "--user=root"], check=True)
    wait_until(lambda: not output("squeue", "-h", "-o", "%i"), "no job left")
    cluster.wait_until_idle()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a user who submits: relative paths begin here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster.yaml").write_text("cpus_per_node: 2\nsignal_lead: 120\n")
    return tmp_path


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that the jobs have to equal: two ranks, by torchrun alone, undisturbed."""
    root = tmp_path_factory.mktemp("whole")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node=2",
            "-m",
            "and_dist",
            "train",
            *CONFIG,
            f"run.root={root}",
            "name=whole",
        ],
        check=True,
        capture_output=True,
    )
    return root / "whole"
