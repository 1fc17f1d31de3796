"""Somebody else on the machine finds where a job's processes meet, and writes what he likes there.

He sees the port in a command line, and every key in the store. Nothing of his may run, nobody
reaches the store from another address, and a job he disturbs ends with a sentence.
"""

from __future__ import annotations

import base64
import encodings.idna  # noqa: F401  # sockets import it late, when nobody may read Python's folder
import itertools
import json
import multiprocessing
import os
import pickle
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import DistError, PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousTimeoutError,
)

from launcher.node.rendezvous import FixedNodes, listen_at
from tests.end_to_end.launching import launch
from tests.other_user import NOBODY

SECOND = timedelta(seconds=1)
SHORT = [
    "--config",
    "configs/debug.yaml",
    "evaluation.baselines=false",
    "curriculum.rounds=1",
    "curriculum.epochs=1",
    "run.stall_seconds=5",
]


class Trap:
    """Runs a command where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def poison(canary: Path) -> list[bytes | str]:
    """Return what is written to keys: a pickle as it is and as c10d stores it, and nonsense."""
    pickled = pickle.dumps(Trap(canary))
    return [pickled, base64.b64encode(pickled).decode(), json.dumps([0, 1, 0, 1]), "", "9" * 30]


def ports_seen(run: Path) -> set[int]:
    """Return the ports that command lines of the job name, which every user may read."""
    found = set()
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            line = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(run) in line:
                found |= {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", line)}
    return found


def intrude(run: Path, canary: Path, seconds: float, wrote: Path) -> None:
    """Be nobody, and write poison to every key there is, for some seconds once there are some."""
    content, here = poison(canary), "127.0.0.1"
    descriptor = os.open(wrote, os.O_WRONLY | os.O_CREAT)
    os.setuid(NOBODY)
    deadline, turn = float("inf"), itertools.count()
    while time.monotonic() < deadline:
        for port in ports_seen(run):
            with suppress(DistError, OSError):
                socket.create_connection((here, port)).close()
                store = TCPStore(here, port, timeout=SECOND, wait_for_workers=False)
                keys = store.list_keys()
                for key in keys:
                    store.set(key, content[next(turn) % len(content)])
                if keys:
                    os.pwrite(descriptor, str(keys).encode(), 0)
                    deadline = min(deadline, time.monotonic() + seconds)
        time.sleep(0.02)


@contextmanager
def intruder(*arguments: object) -> Iterator[None]:
    """Let somebody else intrude meanwhile."""
    process = multiprocessing.get_context("fork").Process(target=intrude, args=arguments)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


@pytest.mark.whole_run
@pytest.mark.parametrize("seconds", [1.0, pytest.param(30.0, marks=pytest.mark.nightly)])
def test_nothing_that_another_user_writes_is_run(tmp_path: Path, seconds: float) -> None:
    run, canary, wrote = tmp_path / "run", tmp_path / "canary", tmp_path / "wrote"
    (tmp_path / "once.yaml").write_text("most_ends_without_progress: 1\n")
    arguments = [*SHORT, "--cluster", tmp_path / "once.yaml", f"run.root={tmp_path}", "name=run"]
    with intruder(run, canary, seconds, wrote):
        status, said = launch("local", "--nodes", 2, *arguments)
    assert wrote.read_text(), "the intruder has to have found the store"
    assert not canary.exists()
    assert status == 0 or re.search(r"and-launch: (failed|stopped), \w", said), said


def test_the_store_listens_at_one_address_alone() -> None:
    with listen_at("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), 1).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), 1)


def meeting(node: int, num_nodes: int, port: int, timeout: timedelta = SECOND) -> FixedNodes:
    return FixedNodes("127.0.0.1", port, node, num_nodes, "job.0", timeout)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_one_node_meets_itself_once() -> None:
    alone = meeting(0, 1, free_port())
    assert not alone.is_closed()
    info = alone.next_rendezvous()
    assert (info.rank, info.world_size) == (0, 1)
    assert isinstance(info.store, PrefixStore)
    assert alone.is_closed()
    assert alone.use_agent_store
    assert alone.num_nodes_waiting() == 0
    with pytest.raises(RendezvousClosedError, match="has met already"):
        alone.next_rendezvous()


def test_a_port_that_is_taken_is_a_sentence() -> None:
    with listen_at("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RendezvousConnectionError, match=f"cannot listen at 127.0.0.1:{port}"):
            meeting(0, 1, port).next_rendezvous()


def test_a_node_that_does_not_come_is_named() -> None:
    with pytest.raises(RendezvousTimeoutError, match=r"^node 1, 2 of 3 did not come"):
        meeting(0, 3, free_port()).next_rendezvous()


def test_a_first_node_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(RendezvousConnectionError, match="node 0 cannot be reached"):
        meeting(1, 2, free_port(), timedelta(milliseconds=100)).next_rendezvous()
