"""How a start ended, judged from what its nodes left, and what comes next.

| a start ends because | the job |
|---|---|
| it is done | is finished |
| it was cancelled | is over (SLURM says so, not the nodes) |
| a rank refused what it was given (status 2) | fails |
| it was asked to end, and saved (status 75) | goes on |
| SLURM ended it | goes on |
| a rank, torchrun or a node was killed or lost | goes on |
| a rank failed with an error of its own | goes on if a checkpoint is new since the last end |

and one that goes on, but has so often in a row left no new checkpoint, fails.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any

from and_dist.guard import TRY_AGAIN
from launcher.jobs import End, NodeEnd

REFUSED = 2
TERMINATED = -signal.SIGTERM
"""How torchrun ends the ranks beside one that failed: no cause."""


def judge(
    nodes: Mapping[int, NodeEnd],
    num_nodes: int,
    before: End | None,
    checkpoint: str,
    most_without_progress: int,
    suspicion: Callable[[int], Any] = int,
    told: str = "",
) -> End:
    """`suspicion` puts the rank first that failed first. `told` is why SLURM ended it, where the
    nodes had no time to write down how they ended."""
    is_new = checkpoint != (before.checkpoint if before else "")
    idle = 0 if is_new else (before.without_progress if before else 0) + 1
    state, why, rank = _look_at(nodes, num_nodes, is_new, suspicion)
    if told and state != "finished":
        state, why, rank = "goes on", told, None
    if state == "goes on" and idle >= most_without_progress:
        state = "failed"
        why = (
            f"{idle} ends in a row left no new checkpoint, the last one because {why}; look at "
            "the logs, then submit again, perhaps with a longer --time or shorter "
            "run.save_minutes"
        )
    return End(state=state, why=why, rank=rank, checkpoint=checkpoint, without_progress=idle)


def _look_at(
    nodes: Mapping[int, NodeEnd],
    num_nodes: int,
    is_new: bool,
    suspicion: Callable[[int], Any],
) -> tuple[str, str, int | None]:
    """State, reason, and the rank whose log says more."""
    for number, node in nodes.items():
        if node.problem:
            return "failed", f"node {number} ({node.node}) {node.problem}", None
    if len(nodes) == num_nodes and all(node.launcher == 0 for node in nodes.values()):
        return "finished", "trained to its end", None
    codes = {rank: code for node in nodes.values() for rank, code in node.exit_codes.items()}
    places = {rank: node.node for node in nodes.values() for rank in node.exit_codes}
    for rank, code in sorted(codes.items()):
        if code == REFUSED:
            return "failed", f"rank {rank} refused what it was given", rank
    for rank, code in sorted(codes.items()):
        if code < 0 and code != TERMINATED:
            return "goes on", f"rank {rank} on {places[rank]} was killed by {_name(-code)}", rank
    for node in nodes.values():
        if node.launcher is not None and node.launcher < 0 and node.launcher != TERMINATED:
            return "goes on", f"torchrun on {node.node} was killed by {_name(-node.launcher)}", None
    if len(nodes) < num_nodes:
        return "goes on", f"{num_nodes - len(nodes)} of {num_nodes} nodes were lost", None
    failed = [rank for rank, code in codes.items() if code not in (TRY_AGAIN, TERMINATED)]
    if failed:
        first = min(failed, key=suspicion)
        state = "goes on" if is_new else "failed"
        return state, f"rank {first} on {places[first]} failed with status {codes[first]}", first
    heard = sorted({name for node in nodes.values() for name in node.heard})
    if heard:
        return "goes on", f"it was told to end by {' and '.join(heard)}", None
    early = [rank for rank, code in codes.items() if code == TRY_AGAIN]
    if early:
        return "goes on", f"rank {min(early)} ended early, to go on", min(early)
    return "goes on", "torchrun failed, no rank says why: see RUN/logs/node-*.log", None


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
