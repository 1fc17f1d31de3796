"""Build the wheel, unpack it, and use it outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole_run


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the content of the wheel."""
    built, folder = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site")
    quiet = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = Path.cwd()
    subprocess.run([*quiet, "wheel", "--no-deps", "--wheel-dir", built, source], check=True)
    (wheel,) = built.glob("*.whl")
    subprocess.run([*quiet, "install", "--no-deps", "--target", folder, wheel], check=True)
    return folder


def run(unpacked: Path, folder: Path, *arguments: str) -> str:
    """Run a module of the unpacked wheel in a folder, and return its output."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_trains_a_shipped_config_outside_the_checkout(
    unpacked: Path, tmp_path: Path
) -> None:
    short = ("curriculum.rounds=1", "curriculum.epochs=1", "data.limit=100", "data.limit_test=50")
    output = run(unpacked, tmp_path, "and_dist", "train", "--config", "demo", *short)
    assert "run folder: runs/demo" in output
    assert (tmp_path / "runs/demo/summary.json").exists()


def test_a_wheel_submits_with_a_shipped_profile(unpacked: Path, tmp_path: Path) -> None:
    given = ("--config", "paper/imagenet-alexnet", "--cluster", "example", "--dry-run")
    output = run(unpacked, tmp_path, "launcher", "submit", *given, "--nodes", "2", "--gpus", "4")
    assert "#SBATCH --nodes=2" in output


def test_a_wheel_has_what_a_type_checker_and_a_page_need(unpacked: Path) -> None:
    for name in (
        "py.typed",
        "report/assets/page.html",
        "planning/cpu.json",
        "configs/demo.yaml",
        "evaluation/fonts/DejaVuSans.ttf",
        "evaluation/fonts/DejaVuSans.LICENSE.txt",
    ):
        assert (unpacked / "and_dist" / name).is_file()
    assert (unpacked / "launcher/profiles/example.yaml").is_file()
    assert not list((unpacked / "launcher").rglob("testcluster*"))
