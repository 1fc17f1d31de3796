"""How a start ended, judged from what its nodes left, and what comes next.

| a start ends because | the job |
|---|---|
| it is done | is finished |
| it was cancelled | is over (SLURM says so, not the nodes) |
| a rank refused what it was given (status 2) | fails |
| it was asked to end, and saved (status 75) | goes on |
| SLURM ended it | goes on |
| a rank, torchrun or a node was killed or lost | goes on |
| the launcher itself met an error | goes on |
| a rank failed with an error of its own | goes on if a checkpoint is new since its beginning |

and one that goes on, but has so often in a row left no new checkpoint, fails.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping

from and_dist.distributed.watchdog import TRY_AGAIN
from launcher.jobs.job_folder import NodeEnd, StartOutcome

REFUSED = 2
TERMINATED = -signal.SIGTERM
"""How torchrun ends the ranks beside one that failed: no cause."""
FailurePriority = Callable[[int], tuple[bool, bool, int]]
"""Puts the rank first that failed first. Begins with whether it only lost another."""


def decide_outcome(
    nodes: Mapping[int, NodeEnd],
    num_nodes: int,
    idle: int,
    most_idle: int,
    failure_priority: FailurePriority = lambda rank: (False, False, rank),
    told: str = "",
) -> StartOutcome:
    """`idle` counts the starts in a row, up to this one, that left no new checkpoint. `told` is why
    SLURM ended it, where the nodes had no time to write down how they ended."""
    state, why, rank = _look_at(nodes, num_nodes, idle == 0, failure_priority)
    if told and state != "finished":
        state, why, rank = "goes on", told, None
    if state == "goes on" and idle >= most_idle:
        state = "failed"
        why = (
            f"{idle} ends in a row left no new checkpoint, the last one because {why}; look at "
            "the logs, then submit again, perhaps with a longer --time or shorter "
            "run.save_minutes"
        )
    return StartOutcome(state=state, why=why, rank=rank)


def _look_at(
    nodes: Mapping[int, NodeEnd], num_nodes: int, is_new: bool, failure_priority: FailurePriority
) -> tuple[str, str, int | None]:
    """State, reason, and the rank whose log says more."""
    for number, node in nodes.items():
        if node.problem:
            return "goes on", f"node {number} ({node.node}) {node.problem}", None
    if len(nodes) == num_nodes and all(node.launcher == 0 for node in nodes.values()):
        return "finished", "trained to its end", None
    codes = dict(sorted(pair for node in nodes.values() for pair in node.exit_codes.items()))
    places = {rank: node.node for node in nodes.values() for rank in node.exit_codes}
    refused = [rank for rank, code in codes.items() if code == REFUSED]
    if refused:
        return "failed", f"rank {refused[0]} refused what it was given", refused[0]
    first = _who_was_first(codes, failure_priority)
    if first is not None and codes[first] < 0:
        why = f"rank {first} on {places[first]} was killed by {_name(-codes[first])}"
        return "goes on", why, first
    for node in nodes.values():
        if node.launcher is not None and node.launcher < 0 and node.launcher != TERMINATED:
            return "goes on", f"torchrun on {node.node} was killed by {_name(-node.launcher)}", None
    if len(nodes) < num_nodes:
        return "goes on", f"{num_nodes - len(nodes)} of {num_nodes} nodes were lost", None
    early = [rank for rank, code in codes.items() if code == TRY_AGAIN]
    if first is not None and not (early and failure_priority(first)[0]):
        state = "goes on" if is_new else "failed"
        return state, f"rank {first} on {places[first]} failed with status {codes[first]}", first
    heard = sorted({name for node in nodes.values() for name in node.heard})
    if heard:
        return "goes on", f"it was told to end by {' and '.join(heard)}", None
    if early:
        return "goes on", f"rank {early[0]} ended early, to go on", early[0]
    return "goes on", "torchrun failed, no rank says why: see RUN/logs/node-*.log", None


def _who_was_first(codes: Mapping[int, int], failure_priority: FailurePriority) -> int | None:
    """Of the ranks that were killed or failed. Nobody here sends SIGKILL and writes it down, so
    that is a cause; any other end may be that of a rank that lost another."""
    ended = [rank for rank, code in codes.items() if code not in (TRY_AGAIN, TERMINATED)]
    killed = [rank for rank in ended if codes[rank] == -signal.SIGKILL]
    return min(killed or ended, key=failure_priority, default=None)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
