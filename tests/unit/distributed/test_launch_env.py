from __future__ import annotations

import pytest

from and_dist.distributed.launch_env import (
    expand_counts,
    first_node,
    is_first_of_node,
    is_rank_zero,
    port_of,
    read_launch_env,
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
