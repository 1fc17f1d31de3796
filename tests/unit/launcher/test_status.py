"""Runs whose SLURM does not answer, or has none: what their folders say."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.jobs.cluster_profile import Profile
from launcher.jobs.job_folder import (
    StartOutcome,
    new_job_folder,
    note_beginning,
    write_end,
    write_id,
    write_request,
)
from launcher.jobs.request import Request
from launcher.status import as_lines, look_at


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Submitted, and nothing more."""
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / "config.yaml").write_text("")
    job = new_job_folder(tmp_path)
    request = Request(
        run=str(tmp_path),
        command=("and_dist",),
        nodes=1,
        workers=1,
        gpus=0,
        seconds=60,
        python="python",
        host_python="python",
        code=str(job / "code"),
        profile=Profile(),
    )
    write_request(job, request)
    return job


def test_a_run_here_is_over_once_its_newest_start_is(job: Path) -> None:
    run = job.parents[1]
    assert not look_at(run).is_over
    note_beginning(job, 0)
    write_end(job, 0, StartOutcome(state="goes on", why="rank 0 was killed"))
    assert not look_at(run).is_over
    note_beginning(job, 1)
    assert not look_at(run).is_over
    write_end(job, 1, StartOutcome(state="finished", why="trained to its end"))
    assert look_at(run).is_over


def test_a_slurm_that_does_not_answer_has_not_said_that_it_is_over(job: Path) -> None:
    run = job.parents[1]
    write_id(job, "17")
    found = look_at(run)
    assert found.state.startswith("unknown, scontrol")
    assert not found.is_over


def test_an_earlier_end_is_not_taken_for_that_of_the_newest_start(job: Path) -> None:
    run = job.parents[1]
    note_beginning(job, 0)
    write_end(job, 0, StartOutcome(state="failed", why="rank 3 failed with status 1", rank=3))
    assert as_lines(look_at(run))[-1] == "  last end: failed, rank 3 failed with status 1"
    note_beginning(job, 1)
    found = look_at(run)
    assert found.state != "failed"
    assert found.end is None
    assert as_lines(found)[-1] == "  an earlier start: failed, rank 3 failed with status 1"
