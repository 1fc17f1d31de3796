"""Find a node's place in a start: its number among how many, its address, and the rendezvous."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from and_dist.distributed.launch_env import first_node, port_of

HOST = "127.0.0.1"
RENDEZVOUS = "fixed-nodes"
"""The name of our rendezvous (launcher.node.rendezvous) for torchrun's --rdzv-backend."""


@dataclass(frozen=True)
class NodePlacement:
    """Hold the place of one node in one start of a job."""

    job: str
    start: int
    """Number of earlier starts of the job."""
    node: int
    num_nodes: int
    name: str
    address: str
    """Address at which the other nodes reach this one."""
    meeting: str
    """The rendezvous as host:port, on the first node."""


def read_placement(environ: Mapping[str, str] = os.environ) -> NodePlacement:
    """Return the node's place from SLURM's variables; raise RuntimeError if a node has no
    address."""
    name = environ.get("SLURMD_NODENAME") or socket.gethostname()
    num_nodes = int(environ["SLURM_JOB_NUM_NODES"])
    first, address = HOST, HOST  # the name of a lone node need not resolve
    if num_nodes > 1:
        first = find_address(first_node(environ["SLURM_JOB_NODELIST"]), name)
        address = find_address(name, name)
    return NodePlacement(
        job_id_of(environ),
        int(environ.get("SLURM_RESTART_COUNT", "0")),
        int(environ["SLURM_NODEID"]),
        num_nodes,
        name,
        address,
        f"{first}:{port_of(int(environ['SLURM_JOB_ID']))}",
    )


def job_id_of(environ: Mapping[str, str] = os.environ) -> str:
    """Return SLURM's id of this job, ARRAY_INDEX for a member of an array.

    One member of an array has the id of the array itself as SLURM_JOB_ID, so that is not enough.
    """
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ["SLURM_JOB_ID"]


def find_address(node: str, here: str) -> str:
    """Return a name or address of a node at which other nodes reach it.

    The node's name is tried first, then the address that SLURM knows. Raise RuntimeError if neither
    resolves to more than the machine itself.
    """
    addresses = []
    for address in (node, _address_of_slurm(node)):
        addresses.append(address)
        if address is not None and resolves(address):
            return address
    raise RuntimeError(
        f"cannot find {node} from {here}: neither its name nor its SLURM address "
        f"({addresses[-1] or 'unknown'}) resolves; add it to DNS or /etc/hosts of the nodes"
    )


def resolves(address: str) -> bool:
    """Return whether a name resolves to an address that other nodes can use, not a loopback
    address."""
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(not str(info[4][0]).startswith(("127.", "::1")) for info in found)


def interface_of(address: str) -> str | None:
    """Return the network interface of this machine that has an IPv4 address or a name of one; or
    None."""
    number = socket.gethostbyname(address)
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == number for entry in addresses):
            return str(name)
    return None


def _address_of_slurm(node: str) -> str | None:
    try:
        shown = subprocess.run(
            ["scontrol", "show", "node", node, "--oneliner"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\bNodeAddr=(\S+)", shown)
    return found.group(1) if found else None
