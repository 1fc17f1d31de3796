"""Run one node's task: start torchrun for its ranks, handle SLURM's signals, record how it ended.

SLURM's signals reach every process of the step. The ranks save by themselves. torchrun is started
with these signals blocked, and its ranks inherit the mask until they install their handlers. So
this task only has to wait, and to see to it that a start ends on all nodes, and in time.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from and_dist.distributed.launch_env import JOB_BEGAN, parent_of, process_began
from and_dist.distributed.watchdog import TRY_AGAIN
from and_dist.utils.owned_files import create_file, make_folder, open_to_append, read_json
from launcher.jobs.cluster_profile import Profile
from launcher.jobs.job_folder import (
    NodeEnd,
    is_log,
    read_node_ends,
    read_request,
    start_folder,
    write_node_end,
)
from launcher.jobs.outcome import TERMINATED
from launcher.jobs.request import Request
from launcher.node.placement import HOST, RENDEZVOUS, NodePlacement, interface_of, resolves
from launcher.node.rank import STOP

ASKED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
"""The signals that ask a job to end."""
HELD_BACK = (signal.SIGUSR1, signal.SIGUSR2)
"""The signals that are blocked in torchrun, and in its ranks until they install handlers."""
LOOK_SECONDS = 0.25
SECONDS_BETWEEN_LOOKS = 1.0
"""The time between two looks at the records of other nodes in the shared folder."""
GRACE_SECONDS = 3.0
"""The time for ranks of other nodes to notice a failure by themselves, so that their logs say
how."""
ORDERLY_SECONDS = 30.0
"""The time for the ranks of other nodes to end after a node whose ranks saved and ended early: all
save together, but each takes its own time to exit."""
LAST_SECONDS = 4.0
"""The time between SIGTERM and SIGKILL for torchrun."""
SECONDS_TO_END = SECONDS_BETWEEN_LOOKS + GRACE_SECONDS + LAST_SECONDS + 2.0
"""The time in which all nodes have ended after one has."""
SECONDS_FOR_ORPHANS = 10.0
"""The time for ranks that lost their torchrun to save and end."""


@dataclass
class Node:
    """Run the ranks of one node in one start."""

    job: Path
    place: NodePlacement
    heard: list[str]
    """Names of the signals so far; `listen` appends to it."""
    on_asked: Callable[[str], None]
    """Called with the name of each signal, once."""
    passes_on: bool = False
    """True if ranks receive signals from this process alone; under SLURM they receive their own."""
    _num_told: int = 0

    def run(self) -> NodeEnd:
        """Run torchrun until it ends; write down and return how the node's ranks ended."""
        request = read_request(self.job)
        folder = start_folder(self.job, self.place.start)
        make_folder(folder)
        adopt_orphans()
        agent = self._start_agent(request)
        was_ended = self._wait(agent)
        end_orphans(0.0 if was_ended else SECONDS_FOR_ORPHANS)
        codes = exit_codes_file(self.job, self.place)
        end = NodeEnd(
            node=self.place.name,
            exit_codes=read_exit_codes(codes),
            launcher=TERMINATED if was_ended else agent.returncode,
            heard=tuple(self.heard),
        )
        write_node_end(self.job, self.place.start, self.place.node, end)
        return end

    def _start_agent(self, request: Request) -> subprocess.Popen[bytes]:
        log = self.job.parents[1] / "logs" / f"node-{self.place.node}.log"
        make_folder(log.parent)
        with open_to_append(log, is_log) as output:
            output.write(
                f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} job {self.place.job}, start "
                f"{self.place.start}: node {self.place.node} of {self.place.num_nodes}, "
                f"{self.place.name}, {request.workers} ranks\n".encode()
            )
            before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
            try:
                return subprocess.Popen(
                    command_of(self.job, request, self.place),
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    env={
                        **network_of(self.place),
                        **os.environ,
                        JOB_BEGAN: f"{process_began():.3f}",
                    },
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _wait(self, agent: subprocess.Popen[bytes]) -> bool:
        """Wait for torchrun; return whether it had to be ended because another node failed."""
        give_up, next_look = math.inf, 0.0
        while agent.poll() is None:
            time.sleep(LOOK_SECONDS)
            self._tell(agent)
            now = time.monotonic()
            if now > next_look:
                next_look = now + SECONDS_BETWEEN_LOOKS
                give_up = min(give_up, now + self._patience())
            if now > give_up:
                agent.terminate()
                _wait_or_kill(agent, LAST_SECONDS)
                return True
        self._tell(agent)
        return False

    def _tell(self, agent: subprocess.Popen[bytes]) -> None:
        """Pass on the signals that have arrived since the last call."""
        for name in self.heard[self._num_told :]:
            self._num_told += 1
            with contextlib.suppress(OSError):  # a shared folder may be unavailable for a moment
                create_file(start_folder(self.job, self.place.start) / STOP, "")
            if self.passes_on:
                agent.terminate()
            self.on_asked(name)

    def _patience(self) -> float:
        """Return how many more seconds the node's ranks may run, given how other nodes have
        ended."""
        try:
            ends = read_node_ends(self.job, self.place.start).values()
        except OSError:
            return math.inf
        early = [end for end in ends if end.launcher != 0]
        if any(set(end.exit_codes.values()) != {TRY_AGAIN} for end in early):
            return GRACE_SECONDS
        return ORDERLY_SECONDS if early else math.inf


def listen() -> list[str]:
    """Install handlers for the signals that ask to end; return the list that their names are added
    to."""
    heard: list[str] = []

    def hear(number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name not in heard:
            heard.append(name)

    for number in ASKED:
        signal.signal(number, hear)
    return heard


def network_of(place: NodePlacement) -> dict[str, str]:
    """Return the variables that name the interface at which the ranks listen for each other.

    On one machine it is the loopback interface, which no other machine reaches. On several, gloo
    finds one by the host's name, and only where it cannot is it told. What the profile sets takes
    precedence.
    """
    is_one_machine = place.address == HOST
    if not is_one_machine and resolves(platform.node()):
        return {}
    interface = interface_of(place.address)
    if interface is None:
        return {}
    nccl = {"NCCL_SOCKET_IFNAME": interface} if is_one_machine else {}
    return {"GLOO_SOCKET_IFNAME": interface, **nccl}


def exit_codes_file(job: Path, place: NodePlacement) -> Path:
    """Return the file to which torchrun writes how its ranks ended."""
    return start_folder(job, place.start) / f"ranks-of-node-{place.node}.json"


def read_exit_codes(path: Path) -> dict[int, int]:
    """Return the exit codes by rank; none where torchrun wrote no file."""
    codes = read_json(path)
    return {int(r): int(code) for r, code in codes.items()} if isinstance(codes, dict) else {}


def command_of(job: Path, request: Request, place: NodePlacement) -> list[str]:
    """Return torchrun's command line on one node."""
    return [
        *shlex.split(request.python),
        "-m",
        "launcher.node.torchrun",
        str(exit_codes_file(job, place)),
        f"--nnodes={place.num_nodes}",
        f"--nproc-per-node={request.workers}",
        f"--rdzv-backend={RENDEZVOUS}",
        f"--rdzv-endpoint={place.meeting}",
        f"--rdzv-conf=node={place.node}",
        f"--rdzv-id={place.job}.{place.start}",
        "--max-restarts=0",
        "-m",
        "launcher.node.rank",
        str(job),
        str(place.start),
        *request.command,
    ]


def environment_of(request: Request) -> dict[str, str]:
    """Return the variables of every process except PYTHONPATH, which begins with the submitted
    code."""
    return {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", **variables_of(request.profile)}


def variables_of(profile: Profile) -> dict[str, str]:
    """Return the variables that a cluster profile sets in every process."""
    variables = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if profile.interface else ()
    return {**{variable: str(profile.interface) for variable in variables}, **profile.environment}


def _wait_or_kill(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def adopt_orphans() -> None:
    """Make this process the parent of orphaned descendants: of the ranks of a killed torchrun."""
    set_child_subreaper = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
    ctypes.CDLL(None).prctl(set_child_subreaper, 1)


def end_with(parent: int) -> None:
    """Let the kernel send this process SIGTERM when its parent ends, however that happens."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() != parent:  # it has ended already
        os.kill(os.getpid(), signal.SIGTERM)


def end_orphans(seconds: float) -> None:
    """Wait until ranks without a torchrun have saved and ended; kill those left after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if ended:
            continue
        if time.monotonic() > deadline:
            for pid in _children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_SECONDS)


def _children() -> list[int]:
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if parent_of(pid) == os.getpid()]
