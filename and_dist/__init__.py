"""Anchor Neighbourhood Discovery with a memory bank sharded over ranks."""

__version__ = "0.1.0"
