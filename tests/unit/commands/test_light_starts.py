"""Load no torch for what answers at once: help, a plan, and an error in a config."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("--help",), 0),
        (("evaluate", "--help"), 0),
        (("plan", "--config", "configs/debug.yaml"), 0),
        (("train", "optim.lr=fast"), 2),
    ],
)
def test_it_loads_no_torch(arguments: tuple[str, ...], status: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == f"status {status}"
