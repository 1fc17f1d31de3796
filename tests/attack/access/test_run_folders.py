"""Opening a run folder of somebody else's: a part of the campaign of run_folders.py."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.whole_run


@pytest.mark.parametrize(
    ("trials", "every"), [(10, 100), pytest.param(500, 1, marks=pytest.mark.nightly)]
)
def test_whatever_a_run_folder_holds_it_is_shown_or_refused(trials: int, every: int) -> None:
    command = [sys.executable, "-m", "tests.attack.access.run_folders"]
    ended = subprocess.run(
        [*command, "--trials", str(trials), "--every", str(every)],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "'wrong': 0" in ended.stdout
