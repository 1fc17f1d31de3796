"""Jobs that are warned, preempted, killed, cut off: each goes on, and ends as if it had not been.

The share of steps that counted is shown for each at the end of all tests.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from and_dist.runs.folder import read_starts
from and_dist.runs.metrics_file import read_metrics
from launcher.jobs.job_folder import job_folders, start_folder
from launcher.node.rank import STOP
from launcher.status import look_at
from slurm.testcluster.cluster import Cluster, wait_until
from tests.end_to_end.processes import pids_of
from tests.ranks.runs import difference
from tests.slurm.jobs import (
    AT_STEP,
    CONFIG,
    ONE_NODE,
    agent_of,
    ends_of,
    kill_one,
    launch,
    pause_at_step,
    resume,
    seconds_until,
    signal_all,
    steps_of,
    submit,
    wait_for_end,
    wait_for_step,
    worker_of,
)

pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.whole_run]
Say = Callable[[str], None]


def assert_went_on(run: Path, whole: Path, say: Say, *whys: str) -> None:
    """Each start but the last ended for its reason, and the run is as if none had."""
    status = wait_for_end(run)
    assert status.state == "finished", launch("logs", run)[1]
    assert difference(run, whole) == ""
    ends = ["" if end is None else end.why for end in ends_of(run)]
    assert status.goodput is not None
    say(f"{run.name}: goodput {status.goodput.describe()}; {'; '.join(ends)}")
    assert len(ends) == status.num_starts == len(whys) + 1
    assert [end for end, why in zip(ends, whys, strict=False) if not re.search(why, end)] == []
    log = (run / "logs" / "rank-0.log").read_text()
    assert [f"start {number}" in log for number in range(len(ends))] == [True] * len(ends)


def job_id_of(run: Path) -> str:
    return str(look_at(run).job_id)


def kill_batch_script(run: Path) -> None:
    kill_one(rf"/job0*{job_id_of(run)}/slurm_script")


STRIKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "worker": (lambda run: kill_one(worker_of(run)), r"rank \d on n\d was killed by SIGKILL"),
    "torchrun": (lambda run: kill_one(agent_of(run)), r"torchrun on n\d was killed by SIGKILL"),
    "script": (kill_batch_script, "SLURM ended it .* and its batch script with it"),
    "usr2": (lambda run: launch("requeue", run), "it was told to end by SIGUSR2"),
    "frozen": (lambda run: launch("requeue", run), "it was told to end, and had not in time"),
    "requeue": (
        lambda run: subprocess.run(["scontrol", "requeue", job_id_of(run)], check=True),
        "SLURM queued it again",
    ),
}


def strike(run: Path, name: str) -> float:
    """Disturb a start of a job as it trains; return the seconds until that was understood."""
    start = sum(end is not None for end in ends_of(run))
    pause_at_step(run, steps_of(run) + AT_STEP, start)
    STRIKES[name][0](run)
    if name != "frozen":  # whose ranks hear that the time is nearly over, and can do nothing
        resume(run)
    return seconds_until(run, start)


@pytest.mark.parametrize(
    "names", [("script", "requeue", "frozen"), ("worker", "torchrun", "usr2")], ids="-".join
)
def test_what_is_killed_or_warned_goes_on(
    home: Path, whole: Path, say: Say, names: tuple[str, ...]
) -> None:
    """Each start of the job is struck once, the last one ends well: starting takes longest."""
    (home / "soon.yaml").write_text("cpus_per_node: 2\nsignal_lead: 30\n")
    run = submit(names[-1], "--cluster", "soon.yaml" if "frozen" in names else "cluster.yaml")
    for name in names:
        say(f"{name}: understood after {strike(run, name):.1f} s")
    assert_went_on(run, whole, say, *(STRIKES[name][1] for name in names))


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "promised"), [("worker", 15), ("frozen", 30)])
def test_what_is_killed_or_warned_is_soon_understood(
    home: Path, name: str, promised: float
) -> None:
    """Hold the seconds of strikes after which nothing is saved first."""
    (home / "soon.yaml").write_text("cpus_per_node: 2\nsignal_lead: 30\n")
    assert strike(submit(name, "--cluster", "soon.yaml"), name) < promised


@pytest.mark.nightly
def test_a_killed_rank_trains_again_within_twenty_seconds(say: Say) -> None:
    """Of which SLURM takes those between the decision and the job's next beginning."""
    run = submit("again", config=(*CONFIG, "run.log_every=1", "curriculum.epochs=40"))
    wait_for_step(run, AT_STEP)
    killed = time.time()
    kill_one(worker_of(run))
    seconds_until(run, 0)
    decided = ends_of(run)[0]
    assert decided is not None
    wait_until(lambda: read_starts(run)[-1]["loaded"] > killed, "the second start")
    start = read_starts(run)[-1]
    wait_until(lambda: bool(steps_after(run, start["loaded"])), "its first step")
    first = steps_after(run, start["loaded"])[0]
    moments = [killed, decided.when, start["job_began"], start["began"], start["loaded"], first]
    names = ("detection", "queue", "restart", "load", "first step")
    parts = [later - earlier for earlier, later in pairwise(moments)]
    each = ", ".join(f"{name} {part:.1f}" for name, part in zip(names, parts, strict=True))
    say(f"killed, training again after {first - killed:.1f} s: {each}")
    assert first - killed < 20


def steps_after(run: Path, moment: float) -> list[float]:
    """The times of the steps that were logged after a moment."""
    found = read_metrics(run / "metrics.jsonl", "step")
    return [step["time"] for step in found if step["time"] > moment]


def test_the_job_of_a_crashed_node_goes_on_on_others(
    whole: Path, cluster: Cluster, say: Say
) -> None:
    run = submit("crashed")
    pause_at_step(run)
    cluster.crash("n2")
    try:
        resume(run)
        assert_went_on(run, whole, say, "a node was lost")
    finally:
        cluster.start("n2")


def test_a_job_that_is_preempted_and_then_at_its_time_limit_saves_and_goes_on(
    home: Path, whole: Path, say: Say
) -> None:
    """The limit is set as the run trains, however long that took, and the ranks are paused until
    SLURM sends its signal: it looks every half minute."""
    (home / "low.yaml").write_text("partition: low\ncpus_per_node: 2\nsignal_lead: 60\n")
    run = submit("low", "--cluster", "low.yaml", *ONE_NODE)
    pause_at_step(run)
    greedy = ("sbatch", "--nodes=4", "--exclusive", "--wrap", "srun sleep 2")
    subprocess.run(greedy, check=True, stdout=subprocess.DEVNULL)
    resume(run)
    seconds_until(run, 0)
    assert pids_of(worker_of(run)) == []

    pause_at_step(run, steps_of(run) + AT_STEP, start=1)
    update_job(run, "EndTime=now+90")
    wait_until((start_folder(job_folders(run)[-1], 1) / STOP).exists, "SLURM's signal")
    resume(run)
    seconds_until(run, 1)
    update_job(run, "TimeLimit=10")
    assert_went_on(run, whole, say, "told to end by SIG(USR2|TERM)", "told to end by SIGUSR2")
    assert all(start.get("steps_again", 0) == 0 for start in read_starts(run))


def update_job(run: Path, setting: str) -> None:
    subprocess.run(["scontrol", "update", f"JobId={job_id_of(run)}", setting], check=True)


def kill_step_of_batch(run: Path) -> None:
    kill_one(rf"slurmstepd: \[{job_id_of(run)}\.batch\]")


def test_a_job_whose_batch_step_is_lost_still_ends(whole: Path) -> None:
    """SLURM does not notice that, and would keep the nodes until the time limit."""
    run = submit("stepd", *ONE_NODE)
    pause_at_step(run)
    kill_step_of_batch(run)
    resume(run)
    status = wait_for_end(run)
    assert status.state == "finished"
    assert difference(run, whole) == ""


def test_a_cancelled_job_does_not_go_on_until_it_is_submitted_again(whole: Path) -> None:
    run = submit("cancelled", *ONE_NODE)
    pause_at_step(run)
    same = (*CONFIG, "name=cancelled", "--cluster", "cluster.yaml", *ONE_NODE)
    status, said = launch("submit", *same)
    assert status == 2
    assert f"is in use by job {job_id_of(run)}" in said
    assert launch("cancel", run)[0] == 0
    resume(run)
    assert wait_for_end(run).state == "cancelled"
    time.sleep(8)  # longer than a requeue takes here
    assert look_at(run).state == "cancelled"
    assert launch("cancel", run)[0] == 2
    submit("cancelled", *ONE_NODE)
    assert wait_for_end(run).state == "finished"
    assert difference(run, whole) == ""


def test_a_network_that_is_away_for_a_while_does_no_harm(
    whole: Path, cluster: Cluster, say: Say
) -> None:
    run = submit("cut")
    pause_at_step(run)
    cluster.cut("n2")
    resume(run)
    time.sleep(20)
    cluster.heal("n2")
    status = wait_for_end(run)
    assert status.state == "finished"
    assert difference(run, whole) == ""
    assert status.goodput is not None
    say(f"cut: goodput {status.goodput.describe()}, {status.num_starts} start(s)")


def test_a_job_that_makes_no_progress_is_given_up_with_a_sentence(home: Path) -> None:
    (home / "once.yaml").write_text("cpus_per_node: 2\nmost_ends_without_progress: 2\n")
    run = submit("idle", "--cluster", "once.yaml", "--nodes", 1)
    for start in range(2):
        wait_until(
            lambda start=start: len(ends_of(run)) > start and bool(pids_of(worker_of(run))),
            f"ranks of start {start}",
        )
        if start == 0:
            signal_all(worker_of(run), signal.SIGKILL)
        else:  # as after the loss of a node: nobody is asked
            subprocess.run(["scontrol", "requeue", job_id_of(run)], check=True)
        seconds_until(run, start)
    status = wait_for_end(run)
    assert status.state == "failed"
    assert status.last_end is not None
    assert "not started again after 2 starts without a new checkpoint" in status.last_end.why
    assert "3 ends in a row left no new checkpoint" in status.last_end.why
    assert "3 ends in a row left no new checkpoint" in launch("status", run)[1]
