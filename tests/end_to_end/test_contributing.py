"""CONTRIBUTING.md adds a method with a file and a row: here it is done, word for word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from and_dist import objectives
from and_dist.config.schema import OBJECTIVES
from and_dist.runs.metrics_file import read_metrics
from tests.conftest import Cli

GUIDE = Path("CONTRIBUTING.md")


def test_a_file_and_a_row_add_a_method(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = GUIDE.read_text()
    file = re.search(r"`and_dist/objectives/(\w+\.py)`:\n\n((?:    .*\n|\n)+)", text)
    row = re.search(r'^    "(\w+)": "(\w+:\w+)",$', text, re.MULTILINE)
    assert file is not None
    assert row is not None
    code = "\n".join(line[4:] for line in file[2].splitlines())
    (tmp_path / file[1]).write_text(code)
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path)])
    monkeypatch.setitem(OBJECTIVES, row[1], row[2])
    status, _, said = cli(
        "train",
        "--config",
        "configs/debug.yaml",
        f"run.root={tmp_path}",
        f"method={row[1]}",
        "curriculum.rounds=1",
        "evaluation.baselines=false",
    )
    assert status == 0, said
    losses = [r["loss"] for r in read_metrics(tmp_path / "debug" / "metrics.jsonl", "epoch")]
    assert losses[-1] < 0.9 * losses[0]
