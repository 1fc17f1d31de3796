"""Let the torchruns of one start meet, at a store on the first node that only they can reach.

torch's own handler (c10d) listens on all interfaces and unpickles what it finds in its store, so
whoever reaches its port runs code. It does so because nodes may come and go. A start of ours has
its nodes from the beginning and one round, so nothing has to be agreed: node 0 listens at the one
address where they meet, each node says that it is there, and their ranks use the same store.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, PrefixStore, Store, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
    rendezvous_handler_registry,
)

from launcher.node.placement import RENDEZVOUS


def register() -> None:
    """Make the handler known to torchrun in this process; its --rdzv-conf has to say node=N."""
    rendezvous_handler_registry.register(RENDEZVOUS, create_handler)


def create_handler(parameters: RendezvousParameters) -> FixedNodes:
    """Return the handler that torchrun's arguments describe."""
    host, _, port = parameters.endpoint.rpartition(":")
    return FixedNodes(
        host,
        int(port),
        int(parameters.config["node"]),
        parameters.max_nodes,
        parameters.run_id,
        timedelta(seconds=int(parameters.config["timeout"])),
    )


class FixedNodes(RendezvousHandler):
    """Lets as many nodes as there are meet once; each knows its number."""

    def __init__(
        self, host: str, port: int, node: int, num_nodes: int, run_id: str, timeout: timedelta
    ) -> None:
        """Note where to meet; next_rendezvous opens the store."""
        self._host, self._port, self._timeout = host, port, timeout
        self._node, self._num_nodes, self._run_id = node, num_nodes, run_id
        self._store: Store | None = None

    @property
    def use_agent_store(self) -> bool:
        """Return True: the ranks meet in this store too, and open no port of their own for one."""
        return True

    def get_backend(self) -> str:
        """Return the name of the handler."""
        return RENDEZVOUS

    def get_run_id(self) -> str:
        """Return the name of the start."""
        return self._run_id

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for all nodes; raise a RendezvousError that says what is missing."""
        if self._store is not None:
            raise RendezvousClosedError("a start meets once, and this one has met already")
        self._store = self._open_store()
        self._wait_for_all(self._store)
        return RendezvousInfo(
            PrefixStore(self._run_id, self._store),
            self._node,
            self._num_nodes,
            RendezvousStoreInfo(self._host, self._port),
        )

    def is_closed(self) -> bool:
        """Return whether no node can join any more."""
        return self._store is not None

    def set_closed(self) -> None:
        """Do nothing: after the one round no node can join anyway."""

    def num_nodes_waiting(self) -> int:
        """Return 0: no node comes later."""
        return 0

    def shutdown(self) -> bool:
        """Do nothing: the store ends with its process, after the ranks of all nodes."""
        return True

    def _open_store(self) -> TCPStore:
        """Return the store, which node 0 serves."""
        place = f"{self._host}:{self._port}"
        served: Mapping[str, Any] = {"is_master": False}
        if self._node == 0:
            try:
                listening = listen_at(self._host, self._port)
            except OSError as error:
                raise RendezvousConnectionError(
                    f"cannot listen at {place}, where the nodes would meet: {error.strerror}"
                ) from None
            served = {"is_master": True, "master_listen_fd": listening.detach()}
        try:
            return TCPStore(
                self._host, self._port, timeout=self._timeout, wait_for_workers=False, **served
            )
        except DistError as error:
            why = str(error).splitlines()[0]
            raise RendezvousConnectionError(f"node 0 cannot be reached at {place}: {why}") from None

    def _wait_for_all(self, store: Store) -> None:
        """Say that this node is there, and wait until all have said so."""
        keys = [f"{self._run_id}/node {node}" for node in range(self._num_nodes)]
        try:
            store.set(keys[self._node], "there")
            store.wait(keys, self._timeout)
        except DistError as error:
            missing = [str(node) for node, key in enumerate(keys) if not _is_set(store, key)]
            raise RendezvousTimeoutError(
                f"node {', '.join(missing)} of {self._num_nodes} did not come to "
                f"{self._host}:{self._port}: {str(error).splitlines()[0]}"
            ) from None


def listen_at(host: str, port: int) -> socket.socket:
    """Return a socket that listens at this address alone, not at others of the machine."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(socket.SOMAXCONN)
    except OSError:
        listening.close()
        raise
    return listening


def _is_set(store: Store, key: str) -> bool:
    """Return whether a node has come; False where node 0 is gone as well."""
    try:
        return bool(store.check([key]))
    except DistError:
        return False
