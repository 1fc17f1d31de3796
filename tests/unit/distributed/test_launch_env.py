from __future__ import annotations

import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from and_dist.distributed.launch_env import (
    SECONDS_FOR_THE_CAUSE,
    expand_counts,
    first_node,
    is_first_of_node,
    is_rank_zero,
    let_the_cause_end_first,
    port_of,
    read_launch_env,
    tell_launcher,
)

SRUN = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "rack[03-05,9],x1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1(x2)",
}


def test_a_lone_process_is_a_world_of_one() -> None:
    layout = read_launch_env({})
    assert (layout.is_alone, layout.rank, layout.size) == (True, 0, 1)


def test_tasks_of_srun_are_ranks() -> None:
    layout = read_launch_env(SRUN)
    assert not layout.is_alone
    assert (layout.rank, layout.size) == (5, 8)
    assert (layout.local_rank, layout.local_size) == (1, 2)
    assert layout.meeting == f"rack03:{port_of(4711, 2)}"
    assert not is_rank_zero(SRUN)
    assert is_rank_zero({**SRUN, "SLURM_PROCID": "0"})
    assert not is_first_of_node(SRUN)
    assert is_first_of_node({**SRUN, "SLURM_LOCALID": "0"})
    assert layout.is_of_srun
    assert (layout.cores, read_launch_env({**SRUN, "SLURM_CPUS_PER_TASK": "12"}).cores) == (0, 12)


def test_torchrun_wins_over_the_task_that_started_it() -> None:
    layout = read_launch_env({**SRUN, "WORLD_SIZE": "3", "RANK": "1"})
    assert (layout.rank, layout.size, layout.is_of_srun) == (1, 3, False)


def test_a_batch_script_and_a_single_task_are_alone() -> None:
    batch = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
    assert read_launch_env(batch).is_alone
    assert read_launch_env({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}).is_alone


def test_a_meeting_place_can_be_given() -> None:
    layout = read_launch_env({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert layout.meeting == "10.0.0.1:29500"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n[1-4]", "n1"),
        ("n[01-04,7],m2", "n01"),
        ("a1,b[2-3]", "a1"),
        ("rack[1-2]n[3-4]", "rack1n3"),
        ("gpu-a100-[007,009]", "gpu-a100-007"),
        ("node[5]-ib", "node5-ib"),
    ],
)
def test_the_first_of_a_node_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_counts_of_nodes_are_expanded() -> None:
    assert expand_counts("2(x3),1") == [2, 2, 2, 1]
    assert expand_counts("8") == [8]


def test_jobs_that_follow_each_other_get_ports_of_their_own() -> None:
    ports = [port_of(job, step) for job in range(100, 300) for step in range(3)]
    assert len(set(ports)) == len(ports)
    assert all(10_000 <= port_of(job) < 30_000 for job in range(0, 10_000_000, 99_991))


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' in the environment is not a whole number"),
        ({"WORLD_SIZE": "0"}, "a world needs at least one rank"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2 in the environment is not below WORLD_SIZE=2"),
        ({**SRUN, "SLURM_PROCID": "x"}, "SLURM_PROCID='x' in the environment"),
    ],
)
def test_a_layout_that_cannot_be_is_a_sentence(environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError) as refused:
        read_launch_env(environ)
    assert sentence in str(refused.value)


def test_the_table_of_torchrun_ends_with_the_message_that_a_rank_left_it(tmp_path: Path) -> None:
    error_file = tmp_path / "error.json"
    tell_launcher("and-dist: no key\x1b[2J 'a'\nb", {"TORCHELASTIC_ERROR_FILE": str(error_file)})
    refused = ProcessFailure(1, 17, 2, str(error_file))
    ended = ProcessFailure(0, 16, -15, str(tmp_path / "none.json"))
    table = str(ChildFailedError("and_dist", {1: refused, 0: ended})).splitlines()
    assert table[-3:-1] == ["  and-dist: no key\ufffd[2J 'a'", "  b"]
    assert set(table[-1]) == {"="}


def test_without_torchrun_or_its_folder_nothing_is_left(tmp_path: Path) -> None:
    tell_launcher("and-dist: of nobody's interest", {})
    tell_launcher("and-dist: too late", {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "gone" / "a")})
    mine = tmp_path / "thesis.tex"
    mine.write_text("mine")
    tell_launcher("and-dist: no place", {"TORCHELASTIC_ERROR_FILE": str(mine)})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("message", "environ", "waits"),
    [
        ("rank 0: [gloo/pair.cc:561] Connection closed by peer [127.0.0.1]:30359", {}, True),
        ("rank 0: photos/3.png: its data is damaged", {}, False),
        ("rank 0: Connection closed by peer", {"LOCAL_WORLD_SIZE": "1"}, False),
        ("rank 0: Connection closed by peer", {"TORCHELASTIC_RUN_ID": None}, False),
    ],
)
def test_who_lost_a_neighbour_waits_until_torchrun_has_seen_the_end_of_that(
    message: str, environ: dict[str, str | None], waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
    there = {name: value for name, value in {**usual, **environ}.items() if value is not None}
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    let_the_cause_end_first(message, there)
    assert waited == [SECONDS_FOR_THE_CAUSE] * waits
