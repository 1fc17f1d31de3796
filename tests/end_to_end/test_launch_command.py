"""and-launch on this machine: what needs no SLURM. Jobs on a real one are in tests/slurm."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from and_dist.runs.folder import read_starts
from launcher.jobs.cluster_profile import Profile
from launcher.jobs.job_folder import (
    StartOutcome,
    job_folders,
    read_ends,
    write_end,
    write_id,
    write_request,
)
from launcher.jobs.request import Request
from slurm.testcluster.cluster import PATIENCE
from tests.end_to_end.launching import launch, launch_on_terminal, ranks_of, start, wait_for_step

pytestmark = pytest.mark.whole_run

CONFIG = (
    "--config",
    "configs/debug.yaml",
    "curriculum.rounds=1",
    "curriculum.epochs=12",
    "optim.milestones=[8]",
    "evaluation.baselines=false",
    "run.threads=1",
    "run.device=cpu",
)


def test_control_c_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """Through both nodes; that a run which is told to end goes on to the bit is proven on ranks."""
    run = tmp_path / "stopped"
    given = ("local", *CONFIG, f"run.root={tmp_path}", "name=stopped", "--nodes", 2)
    process = start(*given)
    wait_for_step(run, 20)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, said
    assert "stopped, it was told to end by SIGINT" in said
    assert ranks_of(run) == []
    starts = json.loads((run / "environment.json").read_text())
    assert len(starts) == 1
    status, said = launch(*given)
    assert status == 0, said
    assert "finished, trained to its end" in said
    starts = json.loads((run / "environment.json").read_text())
    assert [start.get("steps_again") for start in starts] == [None, 0]
    assert [folder.name for folder in job_folders(run)] == ["001", "002"]


def test_a_closed_terminal_saves_too_and_leaves_nobody_behind(tmp_path: Path) -> None:
    run = tmp_path / "hung-up"
    process = start("local", *CONFIG, f"run.root={tmp_path}", "name=hung-up")
    wait_for_step(run, 10)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 75
    assert ranks_of(run) == []
    (end,) = read_ends(job_folders(run)[-1])
    assert (end.state, end.why) == ("stopped", "it was told to end by SIGTERM")


def test_a_failure_without_a_rank_comes_first_and_its_array_is_searched(tmp_path: Path) -> None:
    """As of the second start of a sweep's run, whose first trained well."""
    run, whole = tmp_path / "sweep" / "seed-0", tmp_path / "sweep" / "jobs" / "001"
    job = run / "jobs" / "001"
    whole.mkdir(parents=True)
    request = Request(
        run=str(run),
        command=("and_dist",),
        nodes=1,
        workers=1,
        gpus=0,
        seconds=60,
        python="python",
        host_python="python",
        code=str(whole / "code"),
        profile=Profile(),
    )
    job.mkdir(parents=True)
    (run / "config.yaml").write_text("")
    write_request(job, request)
    write_id(job, "17_2")
    (whole / "17_1_0_log.out").write_text("srun: of another run\n")
    (whole / "17_2_0_log.out").write_text("srun: no such image\n")
    write_end(job, 0, StartOutcome(state="goes on", why="1 of 2 nodes were lost"))
    write_end(job, 1, StartOutcome(state="failed", why="node 0 (n1) cannot find n2 from n1"))
    said = launch("logs", run)[1].splitlines()
    assert said == [
        "failed: node 0 (n1) cannot find n2 from n1",
        "17_2_0_log.out: srun: no such image",
    ]
    (run / "logs").mkdir()
    (run / "logs" / "rank-0.log").write_text("all is well\n")
    assert launch("logs", run)[1].splitlines() == [said[0], "all is well"]


def test_a_refusal_of_the_ranks_is_shown_and_not_tried_again(tmp_path: Path) -> None:
    status, said = launch(
        "local", *CONFIG, f"run.root={tmp_path}", "name=refused", "data.train=nowhere"
    )
    assert status == 1
    assert "failed, rank 0 refused its config or data" in said
    assert "data.train=nowhere" in said.splitlines()[-1]
    assert len(list(read_ends(tmp_path / "refused" / "jobs" / "001"))) == 1
    first_lines = launch("logs", tmp_path / "refused")[1].splitlines()[:7]
    assert "data.train=nowhere" in "".join(first_lines)


def test_a_sweep_here_runs_what_is_missing(tmp_path: Path) -> None:
    short = ("curriculum.rounds=1", "curriculum.epochs=1", "evaluation.baselines=false")
    (tmp_path / "sweep.yaml").write_text(
        "name: seeds\nconfig: [configs/debug.yaml]\n"
        f"overrides: [run.root={tmp_path}, {', '.join(short)}]\ngrid: {{seed: [0, 1]}}\n"
    )
    said = launch("sweep", tmp_path / "sweep.yaml", "--dry-run", "--gpus", 0)[1]
    assert "#SBATCH --array=0-1%2" in said
    assert f"-m launcher.slurm.task {tmp_path}/seeds/seed-0/jobs/NEXT" in said
    assert not (tmp_path / "seeds").exists()
    assert "2 runs, 2 to do" in said
    said = launch("sweep", tmp_path / "sweep.yaml", "--local", "--dry-run", "--workers", 2)[1]
    assert "2 runs, 2 to do, 1 at once" in said
    assert "#SBATCH" not in said
    commands = [line for line in said.splitlines() if " -m launcher local " in line]
    assert ["name=seed-0" in commands[0], "name=seed-1" in commands[1]] == [True, True]
    assert all(line.endswith("--nodes 1 --gpus 0 --workers 2 --time 1d") for line in commands)
    assert not (tmp_path / "seeds").exists()
    subprocess.run(commands[0], shell=True, check=True, capture_output=True)
    first = tmp_path / "seeds" / "seed-0" / "environment.json"
    trained = first.read_text()
    status, said = launch("sweep", tmp_path / "sweep.yaml", "--local")
    assert status == 0, said
    assert "2 runs, 1 to do" in said
    assert said.count("finished") >= 2
    assert (tmp_path / "seeds" / "seed-1" / "summary.json").exists()
    assert first.read_text() == trained


def test_a_dry_run_shows_all_and_writes_nothing(tmp_path: Path) -> None:
    status, said = launch(
        "submit",
        *CONFIG,
        f"run.root={tmp_path}/runs",
        "--cluster",
        "slurm/example.yaml",
        "--nodes",
        4,
        "--gpus",
        8,
        "--time",
        "2d",
        "--dry-run",
        "--after",
        12,
    )
    assert status == 0, said
    for words in (
        "4 node(s) of 8 GPU(s)",
        "predicted:",
        "#SBATCH --time=2880",
        "--dependency=afterany:12",
        "# on each node",
        "launcher.node.torchrun",
        "--nnodes=4 --nproc-per-node=8",
    ):
        assert words in said
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_of_local_shows_commands_that_train(tmp_path: Path) -> None:
    given = (*CONFIG, f"run.root={tmp_path}", "name=pasted", "curriculum.epochs=1")
    milestones = "optim.milestones=[]"
    said = launch("local", *given, milestones, "--nodes", 2, "--dry-run")[1]
    assert not (tmp_path / "pasted").exists()
    commands = [line for line in said.splitlines() if "torch.distributed.run" in line]
    assert len(commands) == 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = f"MASTER_PORT={free.getsockname()[1]}"
    both = "\n".join([f"export PET_{port}", *commands])
    subprocess.run(["bash", "-c", both], check=True, capture_output=True, timeout=PATIENCE)
    (started,) = read_starts(tmp_path / "pasted")
    assert started["world_size"] == 2
    assert (tmp_path / "pasted" / "summary.json").exists()


def test_whoever_forgets_gpus_is_asked_on_a_terminal(tmp_path: Path) -> None:
    given = ("submit", *CONFIG, "run.device=auto", f"run.root={tmp_path}", "--dry-run")
    status, said = launch(*given)
    assert status == 2
    assert said.splitlines() == [
        "and-launch: --gpus is missing, and nothing says whether the nodes have GPUs, so this job "
        "would use CPUs: give --gpus N, or --gpus 0 for CPUs"
    ]
    status, said = launch_on_terminal("-2\n", *given)
    assert status == 2
    assert "--gpus -2 is no number of GPUs" in said
    status, said = launch_on_terminal("many\n4\n", *given)
    assert status == 0, said
    assert said.count("How many GPUs a node? 0 trains on CPUs [0]: ") == 2
    assert "#SBATCH --gpus-per-node=4" in said
    status, said = launch_on_terminal("\n", *given)
    assert status == 0, said
    assert "1 node(s) of 1 CPU rank(s)" in said


def test_a_batch_too_small_for_the_ranks_is_warned_of_before_it_starts(tmp_path: Path) -> None:
    given = (*CONFIG, f"run.root={tmp_path}", "optim.batch_size=64")
    size = ("--nodes", 2, "--gpus", 8, "--dry-run")
    warning = (
        "warning: optim.batch_size=64 has 4 images a step for each of 16 ranks, too few to keep "
        "them busy; better is 2 ranks, for 32 images each"
    )
    for verb in ("submit", "local"):
        assert warning in launch(verb, *given, *size)[1]
    overrides = ", ".join(f'"{option}"' for option in (*given[2:], "data.train=elsewhere"))
    (tmp_path / "sweep.yaml").write_text(
        f"name: seeds\nconfig: [{CONFIG[1]}]\noverrides: [{overrides}]\ngrid: {{seed: [0, 1]}}\n"
    )
    said = launch("sweep", tmp_path / "sweep.yaml", *size)[1]
    larger = "optim.batch_size=512 optim.lr=0.24 (lr by the linear rule) or 2 ranks"
    assert f"better is {larger}, for 32 images each (2 of the runs)" in said
    assert "warning" not in launch("submit", *given, "--gpus", 3, "--dry-run")[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["submit", *CONFIG, "--cluster", "nowhere.yaml"], "cannot read config nowhere.yaml"),
        (["submit", *CONFIG, "optim.lr=fast"], "optim.lr = 'fast' will not do"),
        (["submit", *CONFIG, "--time", "soon"], "--time = 'soon' is no duration"),
        (["submit", *CONFIG, "--nodes", "0"], "greater than or equal to 1"),
        (["submit", *CONFIG, "--nodes", "300"], "has 200 images for 300 ranks"),
        (["status", "nowhere"], "nowhere holds no run"),
        (["logs", "nowhere"], "nowhere holds no run"),
        (["cancel", "configs"], "configs holds no run"),
        (["requeue", "nowhere"], "nowhere holds no run"),
        (["sweep", "configs/debug.yaml"], "unknown key 'data'"),
    ],
)
def test_what_is_wrong_is_a_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    if arguments[0] == "submit":
        arguments = [*arguments, f"run.root={tmp_path}"]
    status, said = launch(*arguments)
    assert status == 2, said
    assert sentence in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_without_slurm_submitting_says_what_to_do_instead(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "launcher", "submit", *CONFIG, f"run.root={tmp_path}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": "/nowhere"},
    )
    assert said.returncode == 1
    assert "sbatch is not on PATH" in said.stderr
    assert "and-launch local" in said.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_login_node_needs_no_torch() -> None:
    code = (
        "import sys, runpy\n"
        "for name in ('torch', 'faiss', 'nvidia'): sys.modules[name] = None\n"
        "sys.argv = ['and-launch', 'submit', *sys.argv[1:], '--dry-run']\n"
        "runpy.run_module('launcher', run_name='__main__')"
    )
    subprocess.run([sys.executable, "-c", code, *CONFIG], check=True, capture_output=True)
