"""One task a node: starts torchrun for its ranks, hears what SLURM says, writes down how it ended.

SLURM's signals reach every process of the step. The ranks save by themselves; torchrun is started
with these signals held back, which its ranks inherit until they can hear them. So this task has
only to wait, and to see to it that a start ends as a whole, and in time.
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

from and_dist.distributed.launch_env import parent_of
from and_dist.distributed.watchdog import TRY_AGAIN
from and_dist.utils.owned_files import create_file, open_to_append
from launcher.jobs.job_folder import (
    NodeEnd,
    is_log,
    read_json,
    read_node_ends,
    read_request,
    start_folder,
    write_node_end,
)
from launcher.jobs.outcome import TERMINATED
from launcher.jobs.request import Request
from launcher.node.placement import NodePlacement, interface_of, resolves
from launcher.node.rank import STOP

ASKED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
HELD_BACK = (signal.SIGUSR1, signal.SIGUSR2)
LOOK_SECONDS = 0.25
SECONDS_BETWEEN_LOOKS = 1.0
"""At what other nodes have left in the shared folder."""
GRACE_SECONDS = 3.0
"""Ranks of other nodes notice a failure by themselves, mostly: then the log says how."""
ORDERLY_SECONDS = 30.0
"""Ranks that were all told to end save together, and then each takes its time to be gone."""
LAST_SECONDS = 4.0
SECONDS_TO_END = SECONDS_BETWEEN_LOOKS + GRACE_SECONDS + LAST_SECONDS + 2.0
"""Until all nodes have ended, after one has."""
SECONDS_FOR_ORPHANS = 10.0
"""Ranks that lost their torchrun save and end."""


@dataclass
class Node:
    job: Path
    place: NodePlacement
    heard: list[str]
    """Grows as `listen` hears."""
    on_asked: Callable[[str], None]
    """Told each signal once it was heard."""
    passes_on: bool = False
    """Whether ranks hear of a signal only from here; SLURM tells them itself."""
    _num_told: int = 0

    def run(self) -> NodeEnd:
        """How its ranks ended, which is written down too."""
        request = read_request(self.job)
        folder = start_folder(self.job, self.place.start)
        folder.mkdir(parents=True, exist_ok=True)
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
        log.parent.mkdir(exist_ok=True)
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
                    env={**network_of(self.place), **os.environ},
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _wait(self, agent: subprocess.Popen[bytes]) -> bool:
        """Whether it had to be ended because another node failed."""
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
        """Whom it concerns of what was heard since the last time."""
        for name in self.heard[self._num_told :]:
            self._num_told += 1
            with contextlib.suppress(OSError):  # a shared folder may be away for a moment
                create_file(start_folder(self.job, self.place.start) / STOP, "")
            if self.passes_on:
                agent.terminate()
            self.on_asked(name)

    def _patience(self) -> float:
        """How long its own ranks may go on, for what has become of the others."""
        try:
            ends = read_node_ends(self.job, self.place.start).values()
        except OSError:
            return math.inf
        early = [end for end in ends if end.launcher != 0]
        if any(set(end.exit_codes.values()) != {TRY_AGAIN} for end in early):
            return GRACE_SECONDS
        return ORDERLY_SECONDS if early else math.inf


def listen() -> list[str]:
    """What asks this process to end, as it comes; from now on, and until it ends."""
    heard: list[str] = []

    def hear(number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name not in heard:
            heard.append(name)

    for number in ASKED:
        signal.signal(number, hear)
    return heard


def network_of(place: NodePlacement) -> dict[str, str]:
    """gloo looks for its interface by the host's name; where that resolves to nothing it is told.
    A profile's own word wins."""
    interface = None if resolves(platform.node()) else interface_of(place.address)
    return {} if interface is None else {"GLOO_SOCKET_IFNAME": interface}


def exit_codes_file(job: Path, place: NodePlacement) -> Path:
    """Where torchrun writes down how its ranks ended."""
    return start_folder(job, place.start) / f"ranks-of-node-{place.node}.json"


def read_exit_codes(path: Path) -> dict[int, int]:
    """By rank; none where torchrun had nothing to write down."""
    codes = read_json(path) if path.exists() else {}
    return {int(rank): int(code) for rank, code in codes.items()}


def command_of(job: Path, request: Request, place: NodePlacement) -> list[str]:
    """torchrun's command line on one node."""
    return [
        *shlex.split(request.python),
        "-m",
        "launcher.node.torchrun",
        str(exit_codes_file(job, place)),
        f"--nnodes={place.num_nodes}",
        f"--nproc-per-node={request.workers}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={place.meeting}",
        f"--rdzv-conf=is_host={int(place.node == 0)}",
        f"--rdzv-id={place.job}.{place.start}",
        f"--local-addr={place.address}",
        "--max-restarts=0",
        "-m",
        "launcher.node.rank",
        str(job),
        str(place.start),
        *request.command,
    ]


def environment_of(request: Request) -> dict[str, str]:
    """Variables of every process, beside PYTHONPATH, which begins with the submitted code."""
    interface = request.profile.interface
    variables = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if interface else ()
    return {
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        # torch 2.15's ranks would look for the store of the first start on a node that is gone.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        **{variable: str(interface) for variable in variables},
        **request.profile.environment,
    }


def _wait_or_kill(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def adopt_orphans() -> None:
    """Be the parent of those whose parent dies: of the ranks of a killed torchrun."""
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1)


def end_orphans(seconds: float) -> None:
    """Ranks that lost their torchrun save and end by themselves, or are ended."""
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
