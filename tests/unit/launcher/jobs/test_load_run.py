"""The config of a run that is submitted, for the first time or again."""

from __future__ import annotations

from pathlib import Path

import pytest

from and_dist.config.comparison import with_values
from and_dist.runs.folder import write_config
from launcher.jobs.request import load_run


def test_a_run_that_is_submitted_again_keeps_what_it_has_chosen(tmp_path: Path) -> None:
    given = ["configs/debug.yaml"], [f"run.root={tmp_path}"]
    first = load_run(*given)
    assert (first.discovery.memory_mb, first.evaluation.every) == ("auto", 10)
    chosen = {"discovery.memory_mb": 500, "bank.form": "triton", "evaluation.every": 0}
    begun = with_values(first, chosen)
    write_config(begun, begun.folder)
    assert load_run(*given) == begun


def test_a_job_that_names_nothing_to_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="say what to train: --config FILE"):
        load_run([], [f"run.root={tmp_path}", "encoder.name=tiny"])
    assert load_run([], [f"run.root={tmp_path}", "data.train=shapes/train"]).data.test is None
