"""Use the commands of a login node where torch, DALI and faiss cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks.runs import train_here

pytestmark = pytest.mark.whole_run

WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "nvidia", "faiss", "safetensors",
                                      "scipy", "tensorboard"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
from and_dist.cli import main
sys.argv[0] = "and-dist"
main()
"""


def and_dist(*arguments: object) -> tuple[int, str]:
    """Return exit code and output of a command without the packages of training."""
    command = [sys.executable, "-c", WITHOUT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_a_login_node_plans_makes_tables_and_reports(tmp_path: Path) -> None:
    run = train_here(tmp_path, "curriculum.epochs=1", "run.threads=1")
    assert and_dist("plan", "--config", "demo")[0] == 0
    status, said = and_dist("table", run)
    assert (status, "kNN" in said) == (0, True)
    status, said = and_dist("report", run)
    assert status == 0, said
    assert "torch is not installed here: the page has no neighbourhoods, map or mistakes" in said
    page = (run / "report.html").read_text()
    assert "No checkpoint was looked at yet" in page
    assert "Accuracy by round" in page


@pytest.mark.parametrize(
    "arguments", [("train", "--config", "debug"), ("embed", "runs/x", "photos", "--out", "f.npy")]
)
def test_a_command_that_needs_torch_says_how_to_install_it(arguments: tuple[str, ...]) -> None:
    status, said = and_dist(*arguments)
    assert status == 2
    assert "is not installed: this command needs `pip install 'and-dist[cuda13]'`" in said
    assert "Traceback" not in said
