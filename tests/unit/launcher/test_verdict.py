from __future__ import annotations

import pytest

from launcher.jobs import End, NodeEnd
from launcher.verdict import judge

MOST = 3


def node(name: str = "n1", **values: object) -> NodeEnd:
    return NodeEnd.model_validate({"node": name, "launcher": 1, **values})


def judge_here(
    *nodes: NodeEnd, before: str = "", now: str = "r00-e0001", idle: int = 0, told: str = ""
) -> End:
    earlier = End(state="goes on", why="", checkpoint=before, without_progress=idle)
    return judge(dict(enumerate(nodes)), 2, earlier, now, MOST, told=told)


FINISHED = node(launcher=0), node("n2", launcher=0)
SAVED = node(exit_codes={0: 75}, heard=("SIGUSR2",)), node("n2", exit_codes={1: 75})
KILLED = node(exit_codes={0: -9, 1: -15}), node("n2", exit_codes={2: 1, 3: 1})
RAISED = node(exit_codes={0: 1}), node("n2", exit_codes={1: -15})
REFUSED = node(exit_codes={0: 2}), node("n2", exit_codes={1: 75})
TORCHRUN = node("n2", launcher=-15, exit_codes={1: 75}), node(launcher=-9)
LOST = (node(exit_codes={0: 1}),)


@pytest.mark.parametrize(
    ("nodes", "state", "why", "rank"),
    [
        (FINISHED, "finished", "trained to its end", None),
        (SAVED, "goes on", "told to end by SIGUSR2", None),
        (KILLED, "goes on", "rank 0 on n1 was killed by SIGKILL", 0),
        (RAISED, "goes on", "rank 0 on n1 failed with status 1", 0),
        (REFUSED, "failed", "rank 0 refused what it was given", 0),
        (TORCHRUN, "goes on", "torchrun on n1 was killed by SIGKILL", None),
        (LOST, "goes on", "1 of 2 nodes were lost", None),
        ((), "goes on", "2 of 2 nodes were lost", None),
        ((node(problem="cannot find n2"),), "failed", "node 0 (n1) cannot find n2", None),
    ],
)
def test_what_comes_next_follows_from_how_the_nodes_ended(
    nodes: tuple[NodeEnd, ...], state: str, why: str, rank: int | None
) -> None:
    end = judge_here(*nodes)
    assert end.state == state
    assert why in end.why
    assert end.rank == rank
    assert end.without_progress == 0


def test_an_error_that_comes_again_at_the_same_checkpoint_is_not_tried_again() -> None:
    end = judge_here(*RAISED, before="r00-e0001", now="r00-e0001")
    assert end.state == "failed"
    assert end.rank == 0


@pytest.mark.parametrize("nodes", [SAVED, KILLED, TORCHRUN, LOST])
def test_what_may_go_on_does_until_too_many_ends_left_no_checkpoint(
    nodes: tuple[NodeEnd, ...],
) -> None:
    idle, states = 0, []
    for _ in range(MOST):
        end = judge_here(*nodes, before="same", now="same", idle=idle)
        idle = end.without_progress
        states.append(end.state)
    assert states == ["goes on", "goes on", "failed"]
    assert "3 ends in a row left no new checkpoint" in end.why
    assert judge_here(*nodes, before="same", now="newer", idle=MOST - 1).state == "goes on"


def test_a_first_start_without_a_checkpoint_counts() -> None:
    end = judge({0: KILLED[0], 1: KILLED[1]}, 2, None, "", MOST)
    assert (end.state, end.without_progress) == ("goes on", 1)


def test_an_error_before_the_first_checkpoint_fails_at_once() -> None:
    assert judge({0: RAISED[0], 1: RAISED[1]}, 2, None, "", MOST).state == "failed"


def test_what_slurm_says_wins_over_nodes_that_had_no_time() -> None:
    assert judge_here(told="it was preempted").why == "it was preempted"
    assert judge_here(*FINISHED, told="it was preempted").state == "finished"


def test_the_rank_that_failed_first_is_named_not_the_one_that_lost_it() -> None:
    nodes = {0: node(exit_codes={0: 1}), 1: node("n2", exit_codes={3: 1})}
    end = judge(nodes, 2, None, "r00-e0001", MOST, suspicion=lambda rank: -rank)
    assert end.rank == 3
    assert "rank 3 on n2" in end.why
