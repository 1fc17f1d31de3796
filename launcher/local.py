"""Run a job on this machine: each node is a process, and a loop restarts the job."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from types import FrameType

from launcher.jobs.job_folder import (
    StartOutcome,
    note_beginning,
    read_node_ends,
    read_request,
    read_secrets,
    starts_without_progress,
    write_end,
)
from launcher.jobs.outcome import decide_outcome
from launcher.jobs.request import Request
from launcher.logs import Follower, failure_priority
from launcher.node.placement import HOST, NodePlacement
from launcher.node.rank import log_of
from launcher.node.runner import (
    ASKED,
    LOOK_SECONDS,
    Node,
    end_with,
    environment_of,
    listen,
    variables_of,
)

log = logging.getLogger(__name__)


def run_here(job: Path) -> StartOutcome:
    """Run a job, and start it again while it goes on; print the log of rank 0 and return the
    outcome."""
    request = read_request(job)
    follower = Follower(log_of(request.folder, 0))
    for start in count():
        note_beginning(job, start)
        told = _run_start(job, start, follower)
        end = decide_outcome(
            read_node_ends(job, start),
            request.nodes,
            starts_without_progress(job, start),
            request.profile.most_ends_without_progress,
            failure_priority(request.folder),
        ).model_copy(update={"when": time.time()})
        if told and end.state == "goes on":
            end = end.model_copy(update={"state": "stopped"})
        write_end(job, start, end)
        if end.state != "goes on":
            return end
        log.warning("start %d of %s: %s; starting again", start, job, end.why)
    raise AssertionError


def _run_start(job: Path, start: int, follower: Follower) -> bool:
    """Run one start on all nodes; return whether this process was told to end."""
    request = read_request(job)
    with socket.socket() as free:
        free.bind((HOST, 0))
        meeting = f"{HOST}:{free.getsockname()[1]}"
    environment = {**os.environ, **environment_of(request), **read_secrets(request)}
    others = environment.get("PYTHONPATH", "").split(os.pathsep)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [request.code, *others]))
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "launcher.local"),
                *(str(job), str(start), str(node), meeting, str(os.getpid())),
            ],
            env={**environment, **gpus_of(node, request, environment)},
            # In a session of their own the nodes get Ctrl-C only from pass_on, and so only once.
            start_new_session=True,
        )
        for node in range(request.nodes)
    ]
    heard: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        heard.append(number)
        if number == signal.SIGHUP:  # the terminal is gone, and output to it would fail
            number = signal.SIGTERM
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        for node in nodes:
            node.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (*ASKED, signal.SIGHUP)}
    try:
        while any(node.poll() is None for node in nodes):
            follower.show_more()
            time.sleep(LOOK_SECONDS)
        follower.show_more()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return bool(heard)


def gpus_of(node: int, request: Request, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the CUDA_VISIBLE_DEVICES of a node, so that no two nodes share a GPU, as on a cluster.

    Ranks of a job without GPUs see none, or run.device=auto would take those of this machine.
    """
    if not request.gpus:
        return {"CUDA_VISIBLE_DEVICES": ""}
    if request.nodes == 1:
        return {}
    first, last = node * request.gpus, (node + 1) * request.gpus
    given = environment.get("CUDA_VISIBLE_DEVICES", "")
    gpus = given.split(",")[first:last] if given else map(str, range(first, last))
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}


def torchrun_commands(request: Request, given: Sequence[str]) -> list[str]:
    """Return a shell command for each node; side by side they train a run without and-launch.

    `given` are the arguments of `and-dist train`. Secrets of the profile are left out.
    """
    commands, profile = list[str](), variables_of(request.profile)
    for node in range(request.nodes):
        gpus = gpus_of(node, request, {**os.environ, **profile})
        settings = [f"{name}={shlex.quote(value)}" for name, value in {**profile, **gpus}.items()]
        several = (f"--nnodes={request.nodes}", f"--node-rank={node}", f"--master-addr={HOST}")
        place = ("--standalone",) if request.nodes == 1 else several
        ranks = (f"--nproc-per-node={request.workers}", "-m", "and_dist", "train", *given)
        python = (*shlex.split(request.python), "-m", "torch.distributed.run")
        beside = ["&"] if node < request.nodes - 1 else []
        commands.append(" ".join([*settings, shlex.join([*python, *place, *ranks]), *beside]))
    return commands


def main() -> None:
    """Run one node: python -m launcher.local JOB START NODE MEETING LAUNCHER.

    It is told to end, so that its ranks save, if the process of the number LAUNCHER ends.
    """
    job, start, node, meeting = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    heard = listen()
    end_with(int(sys.argv[5]))
    try:
        sys.exit(run_node(job, start, node, meeting, heard))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"and-launch: node {node}: {error}")


def run_node(job: Path, start: int, node: int, meeting: str, heard: list[str]) -> int:
    """Run one node's ranks; return 0 if they trained to their end, else 1."""
    request = read_request(job)
    place = NodePlacement(
        f"{job.parents[1].name}-{job.name}",
        start,
        node,
        request.nodes,
        f"node-{node}",
        HOST,
        meeting,
    )
    end = Node(job, place, heard, on_asked=lambda _: None, passes_on=True).run()
    return 0 if end.launcher == 0 else 1


if __name__ == "__main__":
    main()
