"""The same job on this machine: every node is a process here, and requeueing is a loop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import FrameType

from launcher.jobs import (
    End,
    newest_checkpoint,
    read_ends,
    read_node_ends,
    read_request,
    write_end,
)
from launcher.logs import Follower, suspicion
from launcher.node import ASKED, LOOK_SECONDS, Node, environment_of
from launcher.place import Place
from launcher.request import Request
from launcher.verdict import judge
from launcher.worker import log_of

HOST = "127.0.0.1"


def run_here(job: Path) -> End:
    """Start it, and again while it goes on; what its first rank says is shown."""
    request = read_request(job)
    follower = Follower(log_of(request.folder, 0))
    for start in count():
        told = _run_start(job, start, follower)
        end = judge(
            read_node_ends(job, start),
            request.nodes,
            list(read_ends(job))[-1] if start else None,
            newest_checkpoint(request.folder),
            request.profile.most_ends_without_progress,
            suspicion(request.folder),
        ).model_copy(update={"when": time.time()})
        if told and end.state == "goes on":
            end = end.model_copy(update={"state": "stopped"})
        write_end(job, start, end)
        if end.state != "goes on":
            return end
        print(f"and-launch: start {start} of {job}: {end.why}; once more", flush=True)
    raise AssertionError


def _run_start(job: Path, start: int, follower: Follower) -> bool:
    """Whether it was this process that was told to end."""
    request = read_request(job)
    with socket.socket() as free:
        free.bind((HOST, 0))
        meeting = f"{HOST}:{free.getsockname()[1]}"
    environment = {**os.environ, **environment_of(request)}
    others = environment.get("PYTHONPATH", "").split(os.pathsep)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [request.code, *others]))
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "launcher.local", str(job), str(start), str(node), meeting],
            env={**environment, **_gpus_of(node, request)},
            start_new_session=True,  # the terminal's Ctrl-C is passed on once
        )
        for node in range(request.nodes)
    ]
    heard: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        heard.append(number)
        for node in nodes:
            node.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in ASKED}
    try:
        while any(node.poll() is None for node in nodes):
            follower.show_more()
            time.sleep(LOOK_SECONDS)
        follower.show_more()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return bool(heard)


def _gpus_of(node: int, request: Request) -> dict[str, str]:
    """Every node has its own, as on a cluster."""
    first = node * request.gpus
    gpus = range(first, first + request.gpus)
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))} if request.nodes > 1 and gpus else {}


def main() -> None:
    """One node: python -m launcher.local JOB START NODE MEETING."""
    job, start, node, meeting = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    request = read_request(job)
    place = Place(
        f"{job.parents[1].name}-{job.name}", start, node, request.nodes, f"node-{node}", HOST,
        meeting,
    )  # fmt: skip
    sys.exit(Node(job, place, on_asked=lambda _: None, passes_on=True).run())


if __name__ == "__main__":
    main()
