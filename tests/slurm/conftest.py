from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

import pytest

from slurm.testcluster.cluster import FOLDER, Cluster, output, wait_until
from tests.slurm.jobs import CONFIG
from tests.suites import skip_without

SAID = "said"
QUICK = ("test_doctor.py", "test_refusals.py")
"""Files of tests that take seconds."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take slow and quick tests in turn: a worker begins with two that follow each other, and all
    workers are to end at the same time, with quick ones."""
    ours = [item for item in items if item.path.parent == Path(__file__).parent]
    quick = [item for item in ours if item.path.name in QUICK]
    slow = [item for item in ours if item not in quick]
    slow.sort(key=lambda item: item.path.name == "test_jobs.py")  # whose last tests are short
    pairs = zip_longest(slow, quick)
    others = [item for item in items if item not in ours]
    items[:] = others + [item for pair in pairs for item in pair if item is not None]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests have to say; a worker's own output is lost."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    properties = [
        pair for report in reports if report.when == "call" for pair in report.user_properties
    ]
    lines = [line for name, line in properties if name == SAID]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def say(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Show a line at the end of all tests."""
    return lambda line: record_property(SAID, line)


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
    (tmp_path / "cluster.yaml").write_text("gpus_per_node: 0\ncpus_per_node: 2\nsignal_lead: 120\n")
    return tmp_path


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that the jobs have to equal: two ranks, by torchrun alone, undisturbed. The first
    worker that needs it trains it for all."""
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "whole"
    is_trained = root / "is-trained"
    try:
        root.mkdir()
    except FileExistsError:
        wait_until(is_trained.exists, "the whole run, which another worker trains")
        return root / "whole"
    command = ("torch.distributed.run", "--nproc-per-node=2", "-m", "and_dist", "train", *CONFIG)
    subprocess.run(
        [sys.executable, "-m", *command, f"run.root={root}", "name=whole"],
        check=True,
        capture_output=True,
    )
    is_trained.touch()
    return root / "whole"
