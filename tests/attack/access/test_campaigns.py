"""Parts of the campaigns of foreign_files.py and run_folders.py; `make nightly` runs them whole."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.whole_run


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("foreign_files", ("--every", "31")),
        ("run_folders", ("--every", "100", "--trials", "10")),
        pytest.param("foreign_files", ("--seed", "6"), marks=pytest.mark.nightly),
        pytest.param("run_folders", ("--trials", "500"), marks=pytest.mark.nightly),
    ],
)
def test_what_somebody_else_wrote_is_read_or_refused(name: str, arguments: tuple[str, ...]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", f"tests.attack.access.{name}", *arguments],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "'wrong': 0" in ended.stdout
