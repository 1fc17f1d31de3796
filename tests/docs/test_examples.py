"""Run the examples as a reader would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.notebooks import run_notebook

LOOP, NOTEBOOK = Path("examples/own_loop.py"), Path("examples/explore.ipynb")
SIXTY = 60


@pytest.mark.thorough
def test_the_notebook_runs_and_keeps_its_outputs(sandbox: Path) -> None:
    outputs = run_notebook(sandbox / NOTEBOOK)
    printed = [one["text"] for cell in outputs for one in cell if one["output_type"] == "stream"]
    assert ["features: (16, 128)\n", "the same by hand: True\n"] in printed
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    kept = [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]
    assert [len(cell) for cell in kept] == [len(cell) for cell in outputs]


def test_the_loop_of_ones_own_is_short() -> None:
    assert len(LOOP.read_text().splitlines()) < SIXTY


@pytest.mark.whole_run
def test_the_loop_of_ones_own_learns_the_same_on_two_ranks() -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    alone, together = (
        subprocess.run(
            [sys.executable, *start, str(LOOP)], capture_output=True, text=True, check=True
        ).stdout
        for start in ((), torchrun)
    )
    assert together == alone
    assert float(alone.split()[-1].rstrip("%")) > 50
