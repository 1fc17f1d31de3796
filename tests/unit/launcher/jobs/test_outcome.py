from __future__ import annotations

import pytest

from launcher.jobs.job_folder import NodeEnd, StartOutcome
from launcher.jobs.outcome import decide_outcome

MOST = 3


def node(name: str = "n1", **values: object) -> NodeEnd:
    return NodeEnd.model_validate({"node": name, "launcher": 1, **values})


def judge_here(
    *nodes: NodeEnd, idle: int = 0, told: str = "", lost: tuple[int, ...] = ()
) -> StartOutcome:
    """`lost` are the ranks that only lost another."""
    return decide_outcome(
        dict(enumerate(nodes)), 2, idle, MOST, lambda rank: (rank in lost, False, rank), told
    )


FINISHED = node(launcher=0), node("n2", launcher=0)
SAVED = node(exit_codes={0: 75}, heard=("SIGUSR2",)), node("n2", exit_codes={1: 75})
KILLED = node(exit_codes={0: -9, 1: -15}), node("n2", exit_codes={2: 1, 3: 1})
RAISED = node(exit_codes={0: 1}), node("n2", exit_codes={1: -15})
REFUSED = node(exit_codes={0: 2}), node("n2", exit_codes={1: 75})
TORCHRUN = node("n2", launcher=-15, exit_codes={1: 75}), node(launcher=-9)
LOST = (node(exit_codes={0: 1}),)
ABORTED = node(exit_codes={0: 1}), node("n2", exit_codes={8: -6})
UNHEARD = node(exit_codes={0: 75}, heard=("SIGUSR2",)), node("n2", exit_codes={1: 1})


@pytest.mark.parametrize(
    ("nodes", "state", "why", "rank"),
    [
        (FINISHED, "finished", "trained to its end", None),
        (SAVED, "goes on", "told to end by SIGUSR2", None),
        (KILLED, "goes on", "rank 0 on n1 was killed by SIGKILL", 0),
        (RAISED, "goes on", "rank 0 on n1 failed with status 1", 0),
        (REFUSED, "failed", "rank 0 refused its config or data", 0),
        (TORCHRUN, "goes on", "torchrun on n1 was killed by SIGKILL", None),
        (LOST, "goes on", "1 of 2 nodes were lost", None),
        ((), "goes on", "2 of 2 nodes were lost", None),
        ((node(problem="cannot find n2"),), "goes on", "node 0 (n1) cannot find n2", None),
    ],
)
def test_what_comes_next_follows_from_how_the_nodes_ended(
    nodes: tuple[NodeEnd, ...], state: str, why: str, rank: int | None
) -> None:
    end = judge_here(*nodes)
    assert end.state == state
    assert why in end.why
    assert end.rank == rank


def test_an_error_without_a_new_checkpoint_is_not_tried_again() -> None:
    end = judge_here(*RAISED, idle=1)
    assert end.state == "failed"
    assert end.rank == 0


@pytest.mark.parametrize(
    "nodes", [SAVED, KILLED, TORCHRUN, LOST, (node(problem="OSError: Stale file handle"),)]
)
def test_what_may_go_on_does_until_too_many_ends_left_no_checkpoint(
    nodes: tuple[NodeEnd, ...],
) -> None:
    ends = [judge_here(*nodes, idle=idle) for idle in range(1, MOST + 1)]
    assert [end.state for end in ends] == ["goes on", "goes on", "failed"]
    assert "3 ends in a row left no new checkpoint" in ends[-1].why
    assert judge_here(*nodes).state == "goes on"


def test_what_slurm_says_wins_over_nodes_that_had_no_time() -> None:
    assert judge_here(told="it was preempted").why == "it was preempted"
    assert judge_here(*FINISHED, told="it was preempted").state == "finished"


def test_the_rank_that_failed_first_is_named_not_the_one_that_lost_it() -> None:
    nodes = node(exit_codes={0: 1}), node("n2", exit_codes={3: 1})
    end = judge_here(*nodes, lost=(0,))
    assert end.rank == 3
    assert "rank 3 on n2" in end.why


def test_a_rank_that_was_aborted_because_it_lost_another_is_not_blamed() -> None:
    end = judge_here(*ABORTED, idle=1, lost=(8,))
    assert (end.state, end.rank) == ("failed", 0)
    assert judge_here(*ABORTED, idle=1, lost=(0,)).why == "rank 8 on n2 was killed by SIGABRT"


def test_what_was_told_to_end_goes_on_though_a_neighbour_only_lost_it() -> None:
    end = judge_here(*UNHEARD, idle=1, lost=(1,))
    assert (end.state, end.why) == ("goes on", "it was told to end by SIGUSR2")
    assert judge_here(*UNHEARD, idle=1).state == "failed"
