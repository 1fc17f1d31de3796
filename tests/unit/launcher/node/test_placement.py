from __future__ import annotations

import socket

import pytest

from launcher.node.placement import find_address, interface_of, read_placement


def test_a_name_that_resolves_to_this_machine_alone_is_of_no_use_to_others() -> None:
    with pytest.raises(RuntimeError, match="cannot find localhost from n1"):
        find_address("localhost", "n1")


def test_a_node_alone_needs_no_name() -> None:
    """As of a virtual machine whose name is 127.0.1.1."""
    environ = {
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURMD_NODENAME": "localhost",
        "SLURM_NODEID": "0",
        "SLURM_JOB_NUM_NODES": "1",
    }
    place = read_placement(environ)
    assert (place.name, place.address, place.meeting) == (
        "localhost",
        "127.0.0.1",
        "127.0.0.1:10170",
    )
    with pytest.raises(RuntimeError, match="cannot find localhost"):
        read_placement({**environ, "SLURM_JOB_NUM_NODES": "2"})


def test_an_address_is_an_address() -> None:
    assert find_address("10.1.2.3", "n1") == "10.1.2.3"


def test_a_name_that_does_not_resolve_is_a_sentence() -> None:
    name = f"no-such-node-of-{socket.gethostname()}"
    with pytest.raises(RuntimeError, match=r"neither its name nor its SLURM address \(unknown\)"):
        find_address(name, "n1")


def test_an_interface_is_found_by_its_address() -> None:
    assert interface_of("127.0.0.1") == interface_of("localhost") == "lo"
    assert interface_of("203.0.113.7") is None
