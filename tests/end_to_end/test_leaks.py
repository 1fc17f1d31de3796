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


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    folder = tmp_path_factory.mktemp("leaks")
    done = subprocess.run(
        [sys.executable, str(LEAKS), str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_two_thousand_steps_leak_nothing(seen: dict[str, list[dict[str, float]]]) -> None:
    """Over the last 1,000, after one discovery; seen 2 MB in the first 1,000 and none after."""
    usage = seen["over_steps"]
    assert len(usage) == 100, "of twenty steps each"
    early, late = usage[50:75], usage[75:]
    for what in ("files", "threads"):
        assert min(u[what] for u in late) <= min(u[what] for u in early), what
    growth = min(u["resident_mb"] for u in late) - min(u["resident_mb"] for u in early)
    assert growth < MEMORY_MB


def test_twenty_restarts_leak_nothing(seen: dict[str, list[dict[str, float]]]) -> None:
    usage = seen["over_restarts"]
    assert len(usage) == 20
    early, late = usage[5], usage[-1]
    assert late["files"] <= early["files"]
    assert late["threads"] <= early["threads"]
    assert late["resident_mb"] - early["resident_mb"] < MEMORY_MB
