"""What ends a run before it is done, and how it goes on."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from and_dist.distributed.watchdog import ECHO_SECONDS, LEAST_MARGIN, TRY_AGAIN
from and_dist.runs.lock import SECONDS_UNTIL_STALE
from benchmarks.common.rank_pool import free_port
from tests.end_to_end.processes import (
    DEBUG,
    ENDLESS,
    events,
    fill_up,
    finish,
    start,
    start_ranks,
    starts,
    steps,
    train,
    wait_until,
)
from tests.pictures import save_pictures
from tests.ranks.runs import assert_equal_to_the_bit, losses_of

pytestmark = pytest.mark.whole_run

SHORT = ("curriculum.rounds=1", "data.limit=300", "data.limit_test=64")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing has disturbed."""
    root = tmp_path_factory.mktemp("whole")
    train(*SHORT, f"run.root={root}")
    return root / "debug"


def stop_after(step: int, number: signal.Signals, *options: str) -> str:
    """The name of the checkpoint of a run that is sent a signal once it has logged a step."""
    process = start(*DEBUG, *options)
    folder = Path(options[-1].removeprefix("run.root=")) / "debug"
    wait_until(lambda: steps(folder) >= step, process)
    process.send_signal(number)
    status, output = finish(process)
    assert status == TRY_AGAIN
    latest = (folder / "checkpoints" / "latest").read_text().strip()
    sentence = f"stopped by {number.name}, saved as {latest}; the same command goes on"
    assert f"and-dist: {sentence}" in output
    assert "Traceback" not in output
    return latest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2], ids=str)
def test_a_signal_saves_and_ends_the_process(tmp_path: Path, number: signal.Signals) -> None:
    stop_after(1, number, *ENDLESS, f"run.root={tmp_path}")


def test_a_signal_saves_within_the_epoch_and_the_same_command_goes_on(
    tmp_path: Path, whole: Path
) -> None:
    folder = tmp_path / "debug"
    latest = stop_after(9, signal.SIGINT, *SHORT, f"run.root={tmp_path}")
    done = steps(folder)
    assert done % 7 == 0 or latest.endswith(f"-s{done % 7:06}"), "seven steps are an epoch"
    train(*SHORT, f"run.root={tmp_path}")
    assert starts(folder)[-1] == starts(folder)[-1] | {
        "continued_from": latest,
        "steps_again": 0,
    }
    assert_equal_to_the_bit(folder, whole)


def test_two_ranks_stop_together_when_one_is_told(tmp_path: Path) -> None:
    ranks = start_ranks(2, *DEBUG, *ENDLESS, f"run.root={tmp_path}")
    wait_until(lambda: steps(tmp_path / "debug") >= 5, ranks[0])
    ranks[1].send_signal(signal.SIGUSR2)
    (first, said), (second, silent) = (finish(rank) for rank in ranks)
    assert (first, second) == (TRY_AGAIN, TRY_AGAIN)
    assert "stopped by SIGUSR2, saved as r00-" in said
    assert "stopped" not in silent


def test_before_there_is_anything_to_save_a_signal_ends_at_once(tmp_path: Path) -> None:
    process = start(*DEBUG, f"run.root={tmp_path}")
    assert process.stdout is not None
    assert process.stdout.readline() == "debug: loading shapes/train\n"
    assert process.stdout.readline().startswith("debug: 200 images")
    process.send_signal(signal.SIGTERM)
    status, output = finish(process)
    assert status == TRY_AGAIN, output
    assert "stopped by SIGTERM" in output
    assert not (tmp_path / "debug" / "checkpoints" / "latest").exists()


@pytest.mark.timed
def test_a_second_signal_ends_at_once_and_the_last_checkpoint_is_whole(
    tmp_path: Path, whole: Path, at_most: Callable[[float], float]
) -> None:
    """One of two ranks is frozen, so the first request cannot be carried out."""
    arguments = (*DEBUG, *SHORT, f"run.root={tmp_path}")
    ranks = start_ranks(2, *arguments)
    folder = tmp_path / "debug"
    wait_until(lambda: (folder / "checkpoints" / "r00-e0002").exists(), ranks[0])
    ranks[1].send_signal(signal.SIGSTOP)
    ranks[0].send_signal(signal.SIGTERM)
    time.sleep(ECHO_SECONDS / 2)
    ranks[0].send_signal(signal.SIGTERM)  # an echo
    time.sleep(ECHO_SECONDS / 2 + 0.5)
    assert ranks[0].poll() is None
    asked = time.monotonic()
    ranks[0].send_signal(signal.SIGTERM)
    status, output = finish(ranks[0])
    assert time.monotonic() - asked < at_most(2)
    assert status == TRY_AGAIN
    assert "a second signal: stopped at once, the last checkpoint is whole" in output
    ranks[1].kill()
    ranks[1].wait()
    for rank in start_ranks(2, *arguments):
        status, output = finish(rank)
        assert status == 0, output
    assert (losses_of(folder) - losses_of(whole)).abs().max() < 1e-4


def test_a_run_goes_on_at_eight_and_at_five_ranks(tmp_path: Path) -> None:
    options = (*DEBUG, *SHORT, "evaluation.baselines=false")
    status, output = finish(start(*options, f"run.root={tmp_path}", "name=whole"))
    assert status == 0, output
    folder = tmp_path / "moved"
    ranks = start_ranks(8, *options, f"run.root={tmp_path}", "name=moved")
    wait_until(lambda: steps(folder) > 0, ranks[0])
    ranks[-1].send_signal(signal.SIGTERM)
    assert [finish(rank)[0] for rank in ranks] == [TRY_AGAIN] * 8
    for rank in start_ranks(5, *options, f"run.root={tmp_path}", "name=moved"):
        status, output = finish(rank)
        assert status == 0, output
    assert [entry["world_size"] for entry in starts(folder)] == [8, 5]
    expected = losses_of(tmp_path / "whole")
    assert losses_of(folder).shape == expected.shape
    assert ((losses_of(folder) - expected).abs() / expected).max() < 1e-4


@pytest.mark.nightly
def test_a_run_ends_in_time_before_its_limit(tmp_path: Path) -> None:
    limit = 20
    begun = time.monotonic()
    process = start(*DEBUG, *ENDLESS, f"run.root={tmp_path}", f"run.time_limit=0:{limit}")
    status, output = finish(process)
    took = time.monotonic() - begun
    assert status == TRY_AGAIN
    assert "stopped by the time limit, saved as r00-" in output
    assert limit - 2 * LEAST_MARGIN < took < limit


def test_a_rank_that_does_not_move_is_noticed_and_its_stacks_are_kept(tmp_path: Path) -> None:
    options = (*DEBUG, *ENDLESS, f"run.root={tmp_path}", "run.stall_seconds=3")
    ranks = start_ranks(2, *options)
    wait_until(lambda: steps(tmp_path / "debug") >= 5, ranks[0])
    ranks[1].send_signal(signal.SIGSTOP)
    status, output = finish(ranks[0])
    assert status == TRY_AGAIN
    assert "nothing has moved for 3 s; the stacks of all threads are in" in output
    stacks = (tmp_path / "debug" / "stalls" / "rank-0.txt").read_text()
    assert "and_dist/distributed/collectives.py" in stacks, "the other rank is waited for"
    assert "and_dist/training/trainer.py" in stacks
    recorded = json.loads((tmp_path / "debug" / "stalls" / "rank-0-collectives.json").read_text())
    *earlier, last = recorded["backends"]["gloo"]["entries"]
    assert any(entry["retired"] for entry in earlier)
    assert not last["retired"], "this is the collective that the other rank has not entered"
    ranks[1].send_signal(signal.SIGCONT)
    status, output = finish(ranks[1])
    assert status != 0


def test_a_suspended_job_is_no_stalled_one(tmp_path: Path) -> None:
    """All its processes stop for longer than run.stall_seconds, and go on."""
    options = (*DEBUG, *ENDLESS, f"run.root={tmp_path}", "run.stall_seconds=3")
    process = start(*options)
    wait_until(lambda: steps(tmp_path / "debug") >= 5, process)
    process.send_signal(signal.SIGSTOP)
    before = steps(tmp_path / "debug")
    time.sleep(5)
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: steps(tmp_path / "debug") >= before + 5, process)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == TRY_AGAIN


def test_a_second_job_in_a_run_folder_is_refused_by_the_name_of_the_first(tmp_path: Path) -> None:
    options = (*DEBUG, *ENDLESS, f"run.root={tmp_path}")
    first = start(*options, SLURM_JOB_ID=4711)
    wait_until(lambda: steps(tmp_path / "debug") >= 1, first)
    status, output = finish(start(*options))
    assert status == 1
    assert f"is being trained by process {first.pid} on {platform.node()}, job 4711" in output
    assert "Traceback" not in output
    first.kill()
    first.wait()
    second = start(*options)  # what the first has left behind is stale
    done = steps(tmp_path / "debug")
    wait_until(lambda: steps(tmp_path / "debug") > done, second)
    second.send_signal(signal.SIGTERM)
    assert finish(second)[0] == TRY_AGAIN
    assert not (tmp_path / "debug" / "lock").exists()


@pytest.mark.parametrize(
    ("job", "age", "is_refused"),
    [("4711.0", 0, False), ("4712.0", 0, True), ("4712.0", SECONDS_UNTIL_STALE + 10, False)],
    ids=["the same job, moved", "another job", "another job, long silent"],
)
def test_a_lock_of_another_machine_is_judged_by_its_job_and_its_age(
    tmp_path: Path, job: str, age: float, is_refused: bool
) -> None:
    folder = tmp_path / "debug"
    folder.mkdir()
    lock = folder / "lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "process_start": 1.0, "job": job}))
    os.utime(lock, (time.time() - age, time.time() - age))
    quick = ("data.limit=48", "data.limit_test=8", "curriculum.epochs=1", "curriculum.rounds=1")
    process = start(*DEBUG, *quick, f"run.root={tmp_path}", SLURM_JOB_ID=4711, SLURM_STEP_ID=0)
    status, output = finish(process)
    assert status == (1 if is_refused else 0), output
    assert ("is being trained by process 1 on elsewhere, job 4712.0" in output) == is_refused


def test_prepare_stops_and_goes_on(tmp_path: Path) -> None:
    source = save_pictures(tmp_path / "images", [(300, 300)] * 600, "ab", ["jpg"])
    command = ("prepare", source, "--out", tmp_path / "out", "--pack", "--resize", 256)
    process = start(*command)
    wait_until(lambda: any((tmp_path / "out").rglob("*")), process)
    process.send_signal(signal.SIGTERM)
    status, output = finish(process)
    assert status == TRY_AGAIN
    assert "stopped by SIGTERM; the same command goes on" in output
    status, output = finish(start(*command))
    assert status == 0, output
    assert "600 images" in output


def test_a_lost_node_is_trained_on_without_and_taken_back(tmp_path: Path) -> None:
    """Two torchrun agents of one worker each; one dies with its worker, and comes back."""
    folder, port = tmp_path / "debug", free_port()
    agents = [_start_agent(tmp_path, port, is_host) for is_host in (True, False)]
    try:
        wait_until(lambda: steps(folder) >= 20, agents[0])
        _lose(agents[1])
        wait_until(lambda: [s["world_size"] for s in starts(folder)] == [2, 1], agents[0])
        again = steps(folder)
        wait_until(lambda: steps(folder) >= again + 20, agents[0])
        agents[1] = _start_agent(tmp_path, port, is_host=False)
        wait_until(lambda: [s["world_size"] for s in starts(folder)] == [2, 1, 2], agents[0])
        again = steps(folder)
        wait_until(lambda: steps(folder) >= again + 20, agents[0])
        assert starts(folder)[-1]["steps_again"] == 0, "growing is announced, and saved before"
    finally:
        for agent in agents:
            _lose(agent)
    assert [event["step"] for event in events(folder) if event["event"] == "step"] == list(
        range(1, steps(folder) + 1)
    ), "every step once"


def _lose(agent: subprocess.Popen[str]) -> None:
    """With its worker, as a node is lost."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
    workers = children.read_text().split() if children.exists() else []
    for pid in [agent.pid, *map(int, workers)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    agent.wait()


def _start_agent(root: Path, port: int, is_host: bool) -> subprocess.Popen[str]:
    """torch 2.15 shares one store between rounds of a rendezvous, and a node that comes later waits
    for an address that nobody writes again; without sharing it is written in every round."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=1:2",
        "--nproc-per-node=1",
        "--max-restarts=5",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{port}",
        "--rdzv-id=elastic",
        f"--rdzv-conf=is_host={is_host},last_call_timeout=3,keep_alive_interval=1",
        "--local-addr=127.0.0.1",
        "-m",
        "and_dist",
        *DEBUG,
        *ENDLESS,
        f"run.root={root}",
    ]
    with (root / f"agent-{is_host}.log").open("a") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        )


def test_a_full_disk_ends_a_run_with_a_sentence_and_room_lets_it_go_on(
    small_disk: Path, whole: Path
) -> None:
    arguments = (*DEBUG, *SHORT, f"run.root={small_disk}")
    process = start(*arguments)
    folder = small_disk / "debug"
    wait_until(lambda: (folder / "checkpoints" / "latest").exists(), process)
    ballast = small_disk / "ballast"
    fill_up(ballast)
    status, output = finish(process)
    assert status == TRY_AGAIN
    assert "No space left on device; " in output
    assert " left; the same command goes on once that is mended" in output
    assert "Traceback" not in output
    ballast.unlink()
    train(*SHORT, f"run.root={small_disk}")
    assert_equal_to_the_bit(folder, whole)


def test_a_disk_that_is_full_for_a_while_ends_no_run(small_disk: Path) -> None:
    slow = ("data.limit=2000", "optim.batch_size=8", "run.save_minutes=60")
    process = start(*DEBUG, *ENDLESS, *slow, f"run.root={small_disk}")
    folder = small_disk / "debug"
    latest = folder / "checkpoints" / "latest"
    wait_until(latest.exists, process)
    ballast = small_disk / "ballast"
    fill_up(ballast)
    assert process.stdout is not None
    sentence = next(line for line in process.stdout if "training goes on" in line)
    assert "failed on rank 0" in sentence
    ballast.unlink()
    before = latest.read_text()
    wait_until(lambda: latest.read_text() > before, process)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == TRY_AGAIN
    logged = [event["step"] for event in events(folder) if event["event"] == "step"]
    assert logged == list(range(1, len(logged) + 1)), "no line was lost"


def test_a_read_only_folder_gets_a_sentence(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    status, output = finish(start(*DEBUG, *SHORT, f"run.root={small_disk}"))
    assert status == TRY_AGAIN
    assert "Read-only file system" in output
    assert "Traceback" not in output
