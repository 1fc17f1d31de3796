"""The methods the paper compares with, on the same loaders, encoders, schedule and evaluation.

Each is a Peer in a module of its own, found through config.PEERS.
"""

from __future__ import annotations

from importlib import import_module

from and_dist.config.schema import PEERS, Config
from and_dist.data.index import LabelledImages
from and_dist.objectives.base import Peer, Setting


def check_peer(config: Config, images: LabelledImages) -> None:
    """ValueError for what the config's method cannot be trained with."""
    if config.method in PEERS:
        _peer(config.method).check(config, images)


def learns_from_labels(method: str) -> bool:
    return method in PEERS and _peer(method).learns_from_labels


def build_peer(setting: Setting) -> Peer | None:
    """What trains the encoder in place of neighbourhoods, if the config's method is such."""
    method = setting.config.method
    return _peer(method)(setting) if method in PEERS else None


def _peer(method: str) -> type[Peer]:
    module, name = PEERS[method].split(":")
    peer: type[Peer] = getattr(import_module(f"and_dist.objectives.{module}"), name)
    return peer
