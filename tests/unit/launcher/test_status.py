"""Runs whose SLURM does not answer, or has none: what their folders say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from launcher.jobs.cluster_profile import Profile
from launcher.jobs.job_folder import (
    StartOutcome,
    new_job_folder,
    note_beginning,
    read_request,
    write_end,
    write_id,
    write_request,
)
from launcher.jobs.request import Request
from launcher.status import as_lines, is_active, look_at

FIXTURES = Path(__file__).parents[2] / "fixtures"


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


@pytest.mark.parametrize(
    "name", ["request.json", "job.json", "start-0/end.json", "start-1/end.json"]
)
def test_a_damaged_file_of_a_job_is_said_and_left_out(
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    run = Path(shutil.copytree(FIXTURES / "job", tmp_path / "job"))
    before = as_lines(look_at(run))
    (run / "jobs/001" / name).write_text("{]")
    after = as_lines(look_at(run))
    assert f"damaged and left out: {run}/jobs/001/{name}" in caplog.text
    assert [line for line in before if "loss" in line] == [line for line in after if "loss" in line]


def test_a_job_whose_id_is_damaged_may_be_active(tmp_path: Path) -> None:
    """Nobody may submit a second one before its job.json is looked at."""
    run = Path(shutil.copytree(FIXTURES / "job", tmp_path / "job"))
    (run / "jobs/001/job.json").write_text("")
    with pytest.raises(ValueError, match=r"job\.json"):
        is_active(run)


def test_a_sealed_request_comes_back_and_tells_a_change(tmp_path: Path) -> None:
    request = read_request(FIXTURES / "job/jobs/001")
    write_request(tmp_path, request)
    assert read_request(tmp_path) == request
    file = tmp_path / "request.json"
    file.write_text(file.read_text().replace('"nodes": 2', '"nodes": 3'))
    with pytest.raises(ValueError, match=r"request\.json: it is not as it was written"):
        read_request(tmp_path)
