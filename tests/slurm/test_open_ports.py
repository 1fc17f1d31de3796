"""Try to reach the processes of a job; from another node nobody does, if it runs on one.

Every node has a network of its own, so a connection from one to another goes over the wire.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from slurm.testcluster.cluster import NETWORK, output
from tests.end_to_end.processes import pids_of
from tests.slurm.jobs import ONE_NODE, agent_of, pause_at_step, resume, submit, worker_of

pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.whole_run]
LISTENING = "0A"


def listening_at(pid: int) -> set[tuple[str, int]]:
    """The addresses and ports at which a process listens, in its own network."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(descriptor).removeprefix("socket:[").rstrip("]"))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and fields[9] in inodes:
                found.add(_address(fields[1]))
    return found


def _address(text: str) -> tuple[str, int]:
    """An address as /proc writes it: words in the byte order of the machine."""
    host, _, port = text.partition(":")
    words = b"".join(struct.pack("=I", int(host[at : at + 8], 16)) for at in range(0, len(host), 8))
    family = socket.AF_INET if len(words) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, words), int(port, 16)


def reaches(node: str, address: str, port: int) -> bool:
    """Return whether a program on a node gets a connection."""
    shell = f"exec 3<>/dev/tcp/{address}/{port}"
    command = ["srun", f"--nodelist={node}", "--nodes=1", "--ntasks=1", "bash", "-c", shell]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_a_job_of_one_node_is_reached_from_no_other() -> None:
    run = submit("one", *ONE_NODE, "--workers", 2)
    pause_at_step(run)
    doors = set().union(*map(listening_at, (*pids_of(agent_of(run)), *pids_of(worker_of(run)))))
    assert doors
    assert {address for address, _ in doors} == {"127.0.0.1"}
    node, other = output("squeue", "-h", "-o", "%N").strip(), "n4"
    assert node not in ("", other)
    assert not any(reaches(other, f"{NETWORK}.{node[1:]}", port) for _, port in doors)
    resume(run)


def test_a_job_of_two_nodes_listens_only_where_they_meet() -> None:
    run = submit("two")
    pause_at_step(run)
    agents = [listening_at(pid) for pid in pids_of(agent_of(run))]
    (store,) = [doors for doors in agents if doors]
    ((address, port),) = store
    assert address in {f"{NETWORK}.{node}" for node in range(1, 5)}
    assert reaches("n4", address, port), "it is how the other node comes"
    ranks = set().union(*map(listening_at, pids_of(worker_of(run))))
    assert {address.rpartition(".")[0] for address, _ in ranks} == {NETWORK}
    resume(run)
