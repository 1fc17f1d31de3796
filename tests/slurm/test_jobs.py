"""Jobs that nobody disturbs: submitted, followed, by hand, many at once."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.jobs.job_folder import job_folders
from launcher.logs import read_tail
from launcher.status import look_at
from slurm.testcluster.cluster import PATIENCE, output, wait_until
from tests.end_to_end.processes import pids_of
from tests.ranks.runs import difference
from tests.slurm.jobs import (
    CONFIG,
    ONE_NODE,
    REPOSITORY,
    SECONDS_TO_ASK,
    SHORT,
    ends_of,
    launch,
    pause_at_step,
    resume,
    signal_all,
    submit,
    wait_for_end,
    wait_for_step,
    worker_of,
)

BOOM = """\
        if self._steps_done() == 7 and self.world.rank == 0:
            import signal, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        if self._steps_done() == 7 and self.world.rank == 1:
            raise KeyError('boom')
"""
pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.whole_run]


def test_a_job_beside_another_equals_the_same_run_without_slurm(whole: Path) -> None:
    """They share a node, and a third job waits for the first."""
    run, second = submit("job"), submit("second", "--nodes", 1, config=SHORT)
    pause_at_step(run)
    third = submit("third", "--after", look_at(run).job_id, "--nodes", 1, config=SHORT)
    waiting = look_at(third).slurm
    assert waiting is not None
    assert (waiting.state, waiting.reason) == ("PENDING", "Dependency")
    assert "waits for Dependency, 1. of 1 in main" in launch("status", third)[1]
    resume(run)
    assert [wait_for_end(run).state for run in (run, second)] == ["finished"] * 2
    assert [nodes_of(run) for run in (run, second)] == ["n[1-2]", "n1"]
    wait_until(lambda: nodes_of(third) != "", "the start of the third", poll=SECONDS_TO_ASK)
    assert difference(run, whole) == ""
    assert_is_told_and_shown(run)


def nodes_of(run: Path) -> str:
    slurm = look_at(run).slurm
    return "" if slurm is None else slurm.nodes


def assert_is_told_and_shown(run: Path) -> None:
    """The job of two nodes has told its ranks their places, and is shown as it was."""
    marks = [(run / "logs" / f"rank-{rank}.log").read_text().splitlines()[0] for rank in (0, 1)]
    layouts = [re.search(r"rank (\d) of 2 on (n\d), local rank 0 of 1", mark) for mark in marks]
    assert [layout[1] for layout in layouts if layout] == ["0", "1"]
    assert {layout[2] for layout in layouts if layout} == {"n1", "n2"}
    said = launch("status", run)[1]
    for words in ("finished, job", "n[1-2] in main", "2 node(s) of 1 rank(s), 1 start(s)", "loss"):
        assert words in said
    assert re.search(r"goodput \d+\.\d % of .*, lost to .*load", said)
    assert launch("requeue", run)[0] == 2
    assert "its ranks are 0 to 1" in launch("logs", run, "--rank", 99)[1]
    assert "round 1 done" in launch("logs", run)[1]
    assert "rank 1 of 2" in launch("logs", run, "--rank", 1)[1]


def test_a_submission_is_followed_to_its_end(home: Path) -> None:
    """Though SLURM is away for a while."""
    (home / "final.yaml").write_text("cpus_per_node: 2\nrequeues: false\n")
    run, said = home / "runs" / "followed", home / "said"
    options = ("--cluster", "final.yaml", *ONE_NODE, "--time", "5m", "--follow")
    command = (sys.executable, "-m", "launcher", "submit", *SHORT, "name=followed", *options)
    with said.open("w") as file:
        follower = subprocess.Popen(
            [*map(str, command)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
    pause_at_step(run, 1)  # SLURM would hear of its end only a minute after it is back
    assert "requeues: false" in launch("requeue", run)[1]
    assert "Requeue=0" in output("scontrol", "show", "job", str(look_at(run).job_id))
    wait_until(lambda: "RUNNING" in said.read_text(), "a running job")
    (slurmctld,) = pids_of("^slurmctld")
    os.kill(slurmctld, signal.SIGSTOP)
    try:
        assert "unknown" in launch("status", run)[1]
        wait_until(lambda: "unknown" in said.read_text(), "no answer to who follows")
    finally:
        os.kill(slurmctld, signal.SIGCONT)
        resume(run)
    assert follower.wait(PATIENCE) == 0
    words = ("predicted:", "submitted", "and-launch status runs/followed", "RUNNING", "unknown")
    ends = ("round 1 done", "finished, trained to its end")
    assert [word for word in (*words, *ends) if word not in said.read_text()] == []


def break_rank(home: Path) -> Path:
    """Run a job until a rank fails beside one that is deaf.

    The snapshot is changed instead of the checkout: only who runs it notices.
    """
    (home / "held.yaml").write_text("cpus_per_node: 2\nsignal_lead: 30\nsbatch: {hold: true}\n")
    run = submit("broken", "--cluster", "held.yaml", "--workers", 2)
    trainer = job_folders(run)[-1] / "code" / "and_dist" / "training" / "trainer.py"
    text = trainer.read_text()
    place = '        with step_phase("optimiser"):\n'
    assert text.count(place) == 1
    trainer.write_text(text.replace(place, BOOM + place))
    job_id = look_at(run).job_id
    subprocess.run(["scontrol", "release", str(job_id)], check=True)
    wait_until(lambda: bool(pids_of(worker_of(run))), "ranks")
    log = run / "logs" / "rank-1.log"
    wait_until(lambda: "KeyError: 'boom'" in "".join(read_tail(log, 5)), "the failure")
    return run


def wait_for_verdict(run: Path) -> None:
    wait_until(lambda: not pids_of(worker_of(run)), "the end of all ranks")
    wait_until(lambda: ends_of(run)[0] is not None, "a verdict")


def test_a_job_runs_the_code_as_it_was_and_a_failure_is_shown_first(home: Path) -> None:
    run = break_rank(home)
    wait_for_verdict(run)
    launch("cancel", run)
    said = launch("logs", run)[1].splitlines()
    assert "rank 1" in said[0]
    assert "Traceback (most recent call last)" in said[2]
    assert any("KeyError: 'boom'" in line for line in said[:80])
    # Seven steps are an epoch and its checkpoint: once more from there.
    (end, *_) = ends_of(run)
    assert end is not None
    assert end.state == "goes on"
    assert re.search(r"rank 1 on n\d failed with status 1", end.why)


@pytest.mark.nightly
def test_a_deaf_rank_beside_one_that_failed_is_soon_ended(home: Path) -> None:
    run = break_rank(home)
    failed = time.monotonic()
    wait_for_verdict(run)
    assert time.monotonic() - failed < 15


def test_plain_srun_is_a_world_of_its_tasks(home: Path, whole: Path) -> None:
    subprocess.run(
        [
            "srun",
            "--nodes=2",
            "--ntasks=2",
            "--ntasks-per-node=1",
            "--kill-on-bad-exit=1",
            sys.executable,
            "-m",
            "and_dist",
            "train",
            *CONFIG,
            "name=srun",
        ],
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert difference(home / "runs" / "srun", whole) == ""


def test_the_job_by_hand_goes_on_after_a_signal(home: Path, whole: Path) -> None:
    script = home / "train.sbatch"
    shutil.copy(REPOSITORY / "slurm" / "train.sbatch", script)
    job_id = output(
        "sbatch",
        "--parsable",
        "--nodes=2",
        "--cpus-per-task=3",
        f"--export=ALL,PYTHON={sys.executable},RANKS=1",
        str(script),
        *CONFIG,
        "name=hand",
    ).strip()
    run = home / "runs" / "hand"
    metrics, ranks = run / "metrics.jsonl", r"^\S+ -u -m and_dist train .* name=hand"
    wait_until(lambda: metrics.exists() and '"step": 20,' in metrics.read_text(), "a step")
    signal_all(ranks, signal.SIGSTOP)
    assert "CPUs=6" in output("scontrol", "show", "step", f"{job_id}.0")
    subprocess.run(["scancel", "--signal=USR2", job_id], check=True)
    signal_all(ranks, signal.SIGCONT)
    wait_until(lambda: (run / "summary.json").exists(), "the end of the run")
    wait_until(lambda: "COMPLETED" in output("scontrol", "show", "job", job_id), "its job's end")
    assert difference(run, whole) == ""
    log = (home / f"and-dist-{job_id}.log").read_text()
    assert "start 0" in log
    assert "start 1" in log
    assert not list(home.glob(".and-dist-*"))


@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.nightly)])
def test_a_burst_of_jobs_all_end_well(home: Path, count: int) -> None:
    """Four fit the cluster at once."""
    (home / "cluster.yaml").write_text("cpus_per_node: 16\nsignal_lead: 30\n")
    runs = []
    for number in range(count):
        status, said = launch(
            "submit", *SHORT, f"name=burst-{number}", "--cluster", "cluster.yaml", "--time", "10m"
        )
        assert status == 0, said
        runs.append(home / "runs" / f"burst-{number}")
    waiting = [look_at(run) for run in runs]
    places = [status.queue[0] for status in waiting if status.queue]
    assert places == sorted(places)
    assert len({status.job_id for status in waiting}) == count
    for run in runs:
        assert wait_for_end(run, 2 * PATIENCE).state == "finished"


def test_a_run_of_an_earlier_revision_is_listed_and_goes_on_in_a_new_job(home: Path) -> None:
    run = shutil.copytree(REPOSITORY / "tests" / "fixtures" / "job", home / "runs" / "job")
    # No job of this cluster; what the number was in the cluster that ran it is another's here.
    (run / "jobs" / "001" / "job.json").write_text('{"id": "999999", "submitted": "long ago"}')
    assert "2 node(s) of 1 rank(s), 2 start(s)" in launch("status", run)[1]
    status, said = launch("requeue", run)
    assert status == 2
    assert "and-launch submit resumes it" in said
    length = ("curriculum.epochs=40", "optim.milestones=[20]")
    settings = ("evaluation.baselines=true", "run.keep=1", "run.log_every=20")
    assert submit("job", *length, *settings, *ONE_NODE) == run
    wait_for_step(run, 140)
    assert "continuing from" in launch("logs", run)[1]
    assert launch("cancel", run)[0] == 0
    assert wait_for_end(run).state == "cancelled"
