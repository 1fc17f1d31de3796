"""A run of many steps, and many starts of one, take no more memory, files and threads with time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LEAKS = Path(__file__).with_name("leaks.py")
MEMORY_MB = 8
"""Of a process of 1,050; a batch of images kept a step would be 390 over 2,000 steps."""
Seen = dict[str, list[dict[str, float]]]

pytestmark = pytest.mark.whole_run


def look(folder: Path, epochs: int, restarts: int) -> Seen:
    done = subprocess.run(
        [sys.executable, str(LEAKS), str(folder), str(epochs), str(restarts)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return look(tmp_path_factory.mktemp("leaks"), 50, 20)


def test_files_and_threads_are_closed_with_every_epoch_and_restart(tmp_path: Path) -> None:
    seen = look(tmp_path, 6, 4)
    epochs, restarts = seen["over_steps"], seen["over_restarts"]
    assert (len(epochs), len(restarts)) == (12, 4)
    for what in ("files", "threads"):
        assert epochs[-1][what] <= epochs[-3][what], what
        assert restarts[-1][what] <= restarts[1][what], what


@pytest.mark.nightly
def test_two_thousand_steps_leak_nothing(seen: Seen) -> None:
    """Over the last 1,000, after one discovery; seen 2 MB in the first 1,000 and none after."""
    usage = seen["over_steps"]
    assert len(usage) == 100, "of twenty steps each"
    early, late = usage[50:75], usage[75:]
    for what in ("files", "threads"):
        assert min(u[what] for u in late) <= min(u[what] for u in early), what
    growth = min(u["resident_mb"] for u in late) - min(u["resident_mb"] for u in early)
    assert growth < MEMORY_MB


@pytest.mark.nightly
def test_twenty_restarts_leak_nothing(seen: Seen) -> None:
    usage = seen["over_restarts"]
    assert len(usage) == 20
    early, late = usage[5], usage[-1]
    assert late["files"] <= early["files"]
    assert late["threads"] <= early["threads"]
    assert late["resident_mb"] - early["resident_mb"] < MEMORY_MB
