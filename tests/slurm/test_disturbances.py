"""Jobs that are warned, preempted, killed, cut off: each goes on, and ends as if it had not been.

The share of steps that counted is printed for each (pytest -s shows it).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from and_dist.runs.folder import read_starts
from launcher.jobs.job_folder import newest_checkpoint
from launcher.status import look_at
from slurm.testcluster.cluster import PATIENCE, Cluster, wait_until
from tests.end_to_end.processes import pids_of
from tests.ranks.runs import difference
from tests.slurm.jobs import (
    CONFIG,
    agent_of,
    ends_of,
    kill_one,
    launch,
    seconds_until,
    submit,
    wait_for_end,
    wait_for_step,
    worker_of,
)

pytestmark = pytest.mark.usefixtures("home")


AT_STEP = 30
SIDE_BY_SIDE = 3
"""To start a job costs twenty seconds of a core."""


def assert_went_on(run: Path, whole: Path, why: str, num_starts: int = 2) -> None:
    status = wait_for_end(run)
    assert status.state == "finished", launch("logs", run)[1]
    assert difference(run, whole) == ""
    assert status.num_starts == num_starts
    ends = ends_of(run)
    assert ends[0] is not None
    assert re.search(why, ends[0].why), ends[0]
    print(f"{run.name}: goodput {status.goodput:.3f}, {why}")
    log = (run / "logs" / "rank-0.log").read_text()
    assert [f"start {n}" in log for n in range(num_starts)] == [True] * num_starts


def job_id_of(run: Path) -> str:
    return str(look_at(run).job_id)


def kill_step_of_batch(run: Path) -> None:
    kill_one(rf"slurmstepd: \[{job_id_of(run)}\.batch\]")


def kill_batch_script(run: Path) -> None:
    kill_one(rf"/job0*{job_id_of(run)}/slurm_script")


def freeze_ranks(run: Path) -> None:
    """They hear that the time is nearly over, and can do nothing about it."""
    for pid in pids_of(worker_of(run)):
        os.kill(pid, signal.SIGSTOP)
    launch("requeue", run)


PROMISED = {"worker": 15, "frozen": 30}
"""Seconds until it is understood; what saves first takes as long as that takes."""
STRIKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "worker": (lambda run: kill_one(worker_of(run)), r"rank \d on n\d was killed by SIGKILL"),
    "torchrun": (lambda run: kill_one(agent_of(run)), r"torchrun on n\d was killed by SIGKILL"),
    "script": (kill_batch_script, "SLURM ended it .* and its batch script with it"),
    "usr2": (lambda run: launch("requeue", run), "it was told to end by SIGUSR2"),
    "frozen": (freeze_ranks, "it was told to end, and had not in time"),
    "requeue": (
        lambda run: subprocess.run(["scontrol", "requeue", job_id_of(run)], check=True),
        "SLURM queued it again",
    ),
}


@pytest.fixture(scope="module")
def struck(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, float]]:
    """Jobs side by side, each struck as it trains; and how long until that was understood."""
    root = tmp_path_factory.mktemp("struck")
    (root / "cluster.yaml").write_text("cpus_per_node: 2\nsignal_lead: 120\n")
    (root / "soon.yaml").write_text("cpus_per_node: 2\nsignal_lead: 30\n")
    with contextlib.chdir(root):

        def strike(name: str) -> tuple[Path, float]:
            """As soon as it can be: a run takes seconds, and so does a submission."""
            run = submit(name, "--cluster", "soon.yaml" if name == "frozen" else "cluster.yaml")
            wait_for_step(run, AT_STEP)
            STRIKES[name][0](run)
            return run, seconds_until(run, 0)

        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            found = dict(zip(STRIKES, pool.map(strike, STRIKES), strict=True))
        for run, _ in found.values():
            wait_for_end(run)
    return found


@pytest.mark.parametrize("name", STRIKES)
def test_what_is_killed_or_warned_goes_on(
    struck: dict[str, tuple[Path, float]], whole: Path, name: str
) -> None:
    run, seconds = struck[name]
    print(f"{name}: understood after {seconds:.1f} s")
    assert seconds < PROMISED.get(name, PATIENCE)
    assert_went_on(run, whole, STRIKES[name][1])


def test_a_job_whose_batch_step_is_lost_still_ends(whole: Path) -> None:
    """SLURM does not notice that, and would keep the nodes until the time limit."""
    run = submit("stepd")
    wait_for_step(run, AT_STEP)
    kill_step_of_batch(run)
    status = wait_for_end(run)
    assert status.state == "finished"
    assert difference(run, whole) == ""


def test_a_cancelled_job_does_not_go_on_until_it_is_submitted_again(whole: Path) -> None:
    run = submit("cancelled")
    wait_for_step(run, AT_STEP)
    same = (*CONFIG, "name=cancelled", "--cluster", "cluster.yaml", "--nodes", 2)
    status, said = launch("submit", *same)
    assert status == 2
    assert f"is in use by job {job_id_of(run)}" in said
    assert launch("cancel", run)[0] == 0
    assert wait_for_end(run).state == "cancelled"
    time.sleep(8)  # longer than a requeue takes here
    assert look_at(run).state == "cancelled"
    assert launch("cancel", run)[0] == 2
    submit("cancelled")
    assert wait_for_end(run).state == "finished"
    assert difference(run, whole) == ""


def test_a_preempted_job_saves_waits_and_goes_on(home: Path, whole: Path) -> None:
    (home / "low.yaml").write_text("partition: low\ncpus_per_node: 2\nsignal_lead: 120\n")
    run = submit("preempted", "--cluster", "low.yaml")
    wait_for_step(run, AT_STEP)
    greedy = subprocess.run(
        ["sbatch", "--parsable", "--nodes=4", "--exclusive", "--wrap", "srun sleep 5"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    wait_until(lambda: ends_of(run)[0] is not None, "preemption")
    assert pids_of(worker_of(run)) == []
    assert_went_on(run, whole, "told to end by SIG(USR2|TERM)")
    print(f"preempted by job {greedy}")


def test_a_job_at_its_time_limit_goes_on_in_the_next(home: Path) -> None:
    """The one slow test: SLURM's shortest limit is a minute."""
    (home / "short.yaml").write_text("cpus_per_node: 2\nsignal_lead: 20\n")
    run = submit(
        "limited",
        "curriculum.epochs=4000",
        "optim.milestones=[3000]",
        "--time",
        "1m",
        "--cluster",
        "short.yaml",
    )
    # SLURM looks every half minute, so the signal may come before there is anything to save.
    wait_until(lambda: newest_checkpoint(run) != "" and ends_of(run)[-1] is not None, "it")
    before, num_starts = look_at(run).training["step"]["step"], len(ends_of(run))
    end = ends_of(run)[-1]
    assert end is not None
    assert (end.state, end.why) == ("goes on", "it was told to end by SIGUSR2")
    wait_for_step(run, before + 20, start=num_starts)
    assert all(start.get("steps_again", 0) == 0 for start in read_starts(run))
    launch("cancel", run)


def test_the_job_of_a_crashed_node_goes_on_on_others(whole: Path, cluster: Cluster) -> None:
    run = submit("crashed")
    wait_for_step(run, AT_STEP)
    cluster.crash("n2")
    try:
        assert_went_on(run, whole, "a node was lost")
    finally:
        cluster.start("n2")


def test_a_network_that_is_away_for_a_while_does_no_harm(whole: Path, cluster: Cluster) -> None:
    run = submit("cut")
    wait_for_step(run, AT_STEP)
    cluster.cut("n2")
    time.sleep(20)
    cluster.heal("n2")
    status = wait_for_end(run)
    assert status.state == "finished"
    assert difference(run, whole) == ""
    print(f"cut: goodput {status.goodput:.3f}, {status.num_starts} start(s)")


def test_a_job_that_makes_no_progress_is_given_up_with_a_sentence(home: Path) -> None:
    (home / "once.yaml").write_text("cpus_per_node: 2\nmost_ends_without_progress: 2\n")
    run = submit("idle", "--cluster", "once.yaml")
    for start in range(2):
        wait_until(
            lambda start=start: len(ends_of(run)) > start and bool(pids_of(worker_of(run))),
            f"ranks of start {start}",
        )
        if start == 0:
            for pid in pids_of(worker_of(run)):
                os.kill(pid, signal.SIGKILL)
        else:  # as after the loss of a node: nobody is asked
            subprocess.run(["scontrol", "requeue", job_id_of(run)], check=True)
        seconds_until(run, start)
    status = wait_for_end(run)
    assert status.state == "failed"
    assert status.last_end is not None
    assert "not started again after 2 starts without a new checkpoint" in status.last_end.why
    assert "3 ends in a row left no new checkpoint" in status.last_end.why
    assert "3 ends in a row left no new checkpoint" in launch("status", run)[1]
