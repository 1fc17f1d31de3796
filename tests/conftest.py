from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from and_dist.cli import main
from benchmarks.common.rank_pool import RankPool
from slurm.testcluster.cluster import PATIENCE
from tests.suites import (  # pytest finds its hooks here
    Guard,
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_runtest_makereport,
    pytest_runtest_protocol,
    pytest_terminal_summary,
    skip_without,
)

__all__ = [
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_runtest_makereport",
    "pytest_runtest_protocol",
    "pytest_terminal_summary",
]

Cli = Callable[..., tuple[int, str, str]]

settings.register_profile("house", deadline=None, max_examples=50, derandomize=True, database=None)
settings.load_profile("house")


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    with Guard.lowered():
        pool = RankPool()
    yield pool
    pool.close()


@pytest.fixture
def at_most(request: pytest.FixtureRequest) -> Callable[[float], float]:
    """Gives the seconds that something may take: those promised in `make nightly`, else plenty."""
    is_held = request.config.getoption("--hold-seconds")
    return lambda seconds: seconds if is_held else max(PATIENCE, seconds)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB. CI is root; who is not cannot mount one, and the rest still runs."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", folder]).returncode:
        skip_without("root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """(exit status, stdout, stderr) of and-dist in this process."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["and-dist", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call
