"""Decide how a start ended, from the records of its nodes, and whether the job goes on.

| a start ends because | the job |
|---|---|
| training is done | is finished |
| it was cancelled | is over (SLURM says so, not the nodes) |
| a rank refused its config or data (exit code 2) | fails |
| it was asked to end, and saved (exit code 75) | goes on |
| a disk was full, read-only or broken (exit code 75) | goes on |
| SLURM ended it | goes on |
| a rank, torchrun or a node was killed or lost | goes on |
| the launcher itself failed | goes on |
| a rank failed with an error of its own | goes on if a checkpoint is new since its beginning |

A job that would go on fails if too many starts in a row left no new checkpoint.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping

from and_dist.distributed.watchdog import TRY_AGAIN
from launcher.jobs.job_folder import NodeEnd, StartOutcome

REFUSED = 2
"""The exit code of a rank that refuses its config or data."""
TERMINATED = -signal.SIGTERM
"""The exit code of ranks that torchrun ends because another one failed: never the cause."""
FailurePriority = Callable[[int], tuple[bool, bool, int]]
"""A sort key of ranks that puts the one first that failed first. Its first item is whether the rank
failed only because it lost the connection to another."""


def decide_outcome(
    nodes: Mapping[int, NodeEnd],
    num_nodes: int,
    idle: int,
    most_idle: int,
    failure_priority: FailurePriority = lambda rank: (False, False, rank),
    told: str = "",
) -> StartOutcome:
    """Return how a start ended, and whether the job goes on.

    `idle` counts the starts in a row, up to this one, that left no new checkpoint. `told` is the
    reason why SLURM ended the start, where the nodes had no time to record how they ended.
    """
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
    """Return the state, the reason, and the rank whose log says more."""
    for number, node in nodes.items():
        if node.problem:
            return "goes on", f"node {number} ({node.node}) {node.problem}", None
    if len(nodes) == num_nodes and all(node.launcher == 0 for node in nodes.values()):
        return "finished", "trained to its end", None
    codes = dict(sorted(pair for node in nodes.values() for pair in node.exit_codes.items()))
    places = {rank: node.node for node in nodes.values() for rank in node.exit_codes}
    refused = [rank for rank, code in codes.items() if code == REFUSED]
    if refused:
        return "failed", f"rank {refused[0]} refused its config or data", refused[0]
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
        return "goes on", f"rank {early[0]} ended early, to go on later", early[0]
    return "goes on", "torchrun failed, no rank says why: see RUN/logs/node-*.log", None


def _who_was_first(codes: Mapping[int, int], failure_priority: FailurePriority) -> int | None:
    """Return the rank that failed or was killed first, or None.

    SIGKILL is always a cause, because the launcher's own SIGKILLs are not recorded; a rank with any
    other exit code may only have lost its connection to another.
    """
    ended = [rank for rank, code in codes.items() if code not in (TRY_AGAIN, TERMINATED)]
    killed = [rank for rank in ended if codes[rank] == -signal.SIGKILL]
    return min(killed or ended, key=failure_priority, default=None)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
