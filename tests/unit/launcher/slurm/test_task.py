"""What is decided where SLURM does not answer, or may not requeue. Real jobs are in tests/slurm."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from launcher.jobs.cluster_profile import Profile
from launcher.jobs.job_folder import (
    NodeEnd,
    new_job_folder,
    note_beginning,
    read_end,
    write_node_end,
    write_request,
)
from launcher.jobs.request import Request
from launcher.slurm.client import ask
from launcher.slurm.task import settle, settle_late, settle_what_slurm_ended

SAVED = NodeEnd(node="n1", exit_codes={0: 75}, launcher=1, heard=("SIGUSR2",))


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A start of one node has begun, where no SLURM is."""
    monkeypatch.setenv("PATH", "/nowhere")
    job = new_job_folder(tmp_path)
    write_job(job)
    note_beginning(job, 0)
    return job


def write_job(job: Path, requeues: bool = True) -> None:
    request = Request(
        run=str(job.parents[1]),
        command=("and_dist",),
        nodes=1,
        workers=1,
        gpus=0,
        seconds=60,
        python="python",
        host_python="python",
        code="code",
        profile=Profile(requeues=requeues),
    )
    write_request(job, request)


def test_a_slurm_that_is_away_is_no_word_of_its(job: Path) -> None:
    write_node_end(job, 0, 0, NodeEnd(node="n1", launcher=0))
    assert settle_what_slurm_ended(job, "17", 0) is None
    assert settle(job, "17", 0).state == "finished"


@pytest.mark.parametrize("requeues", [True, False])
def test_what_cannot_be_requeued_has_stopped_and_says_why(job: Path, requeues: bool) -> None:
    write_job(job, requeues)
    write_node_end(job, 0, 0, SAVED)
    end = settle(job, "17", 0)
    assert end.state == "stopped"
    why = "scontrol is not on PATH" if requeues else "requeues is false"
    assert f"it was told to end by SIGUSR2; not requeued ({why}" in end.why
    assert "submit the same again" in end.why
    assert read_end(job, 0) == end


def test_what_has_not_ended_in_time_is_settled_once(job: Path) -> None:
    settle_late(job, "17", 0, 0.2, threading.Event())
    end = read_end(job, 0)
    assert end is not None
    assert "it was told to end, and had not in time" in end.why
    write_node_end(job, 0, 0, SAVED)
    assert settle(job, "17", 0) == end


def test_what_ends_in_time_is_left_to_the_batch_script(job: Path) -> None:
    is_over = threading.Event()
    waiting = threading.Thread(target=settle_late, args=(job, "17", 0, 60, is_over))
    began = time.monotonic()
    waiting.start()
    is_over.set()
    waiting.join()
    assert time.monotonic() - began < 30
    assert read_end(job, 0) is None


def test_slurm_is_asked_again_while_it_is_away_and_not_where_it_refuses(tmp_path: Path) -> None:
    away = "Unable to contact slurm controller (connect failure)"
    script = f'if [ -e {tmp_path}/asked ]; then echo here; else echo "{away}" >&2; exit 1; fi'
    once = f"{script.replace('exit 1', f'touch {tmp_path}/asked; exit 1')}"
    with pytest.raises(RuntimeError, match="Unable to contact"):
        ask("sh", "-c", script)
    assert ask("sh", "-c", once, patience=10) == "here\n"
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="Invalid job id"):
        ask(
            "sh",
            "-c",
            "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
            patience=60,
        )
    assert time.monotonic() - began < 30
