"""Read the tensors of a checkpoint, whole or some of their rows, from the files of all ranks.

Only safetensors is needed for that, so a run that resumes does not load torch's DCP.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open
from torch import Tensor

SHARDING = "DCP_SHARDING_INFO"
"""The metadata of a file that say where its part of each tensor begins."""


class Piece(NamedTuple):
    """Names the rows [start, stop) of a tensor, which lie in one file."""

    start: int
    stop: int
    file: Path
    shape: list[int]


class TensorFiles:
    """Finds every tensor of a checkpoint; nothing is held in memory."""

    def __init__(self, checkpoint: Path) -> None:
        """Read what each file says it holds."""
        self._pieces: dict[str, list[Piece]] = {}
        for file in checkpoint.glob("*.safetensors"):
            for name, piece in _pieces_of(file):
                self._pieces.setdefault(name, []).append(piece)
        for pieces in self._pieces.values():
            pieces.sort()

    def pieces(self, name: str) -> list[Piece]:
        """Return the pieces of a tensor, in the order of their rows; none for an unknown name."""
        return self._pieces.get(name, [])

    def fill(self, name: str, tensor: Tensor, start: int = 0, num_rows: int | None = None) -> None:
        """Copy the rows of a tensor that begin at `start` into the given one.

        `num_rows` is how many rows the whole tensor has, where that is not what is asked for.
        Raise ValueError where the stored tensor has another shape or is not whole.
        """
        expected = list(tensor.shape)
        if num_rows is not None:
            expected[0] = num_rows
        pieces = self.pieces(name)
        if _shape_of(pieces) != expected:
            raise ValueError(f"{name} is stored as {_shape_of(pieces)}, not as {expected}")
        if tensor.shape == tuple(expected) and len(pieces) == 1:
            with safe_open(pieces[0].file, "pt") as content:
                tensor.copy_(content.get_tensor(name))
            return
        stop = start + len(tensor)
        for piece in pieces:
            first, last = max(start, piece.start), min(stop, piece.stop)
            if first < last:
                with safe_open(piece.file, "pt") as content:
                    rows = content.get_slice(name)[first - piece.start : last - piece.start]
                    tensor[first - start : last - start] = rows


def _pieces_of(file: Path) -> Iterator[tuple[str, Piece]]:
    """Yield what a file holds: the name of each tensor, and which part of it.

    Raise ValueError for a file that does not say which parts it holds.
    """
    with safe_open(file, "pt") as content:
        metadata = content.metadata() or {}
        if SHARDING not in metadata:
            raise ValueError(
                f"{file} does not say where its tensors begin, it is not a file of ours"
            )
        offsets = json.loads(metadata[SHARDING])
        for name in content.keys():  # noqa: SIM118 - an open file is no mapping
            start = next(iter(offsets[name]["saved_offsets"]), 0)
            shape = content.get_slice(name).get_shape()
            yield name, Piece(start, start + next(iter(shape), 1), file, shape)


def _shape_of(pieces: list[Piece]) -> list[int] | None:
    """Return the shape of a whole tensor; None where its pieces do not make one."""
    starts = [0, *(piece.stop for piece in pieces)]
    is_whole = [piece.start for piece in pieces] == starts[:-1]
    # A narrower piece would be spread over all columns without an error.
    if not is_whole or len({tuple(piece.shape[1:]) for piece in pieces}) != 1:
        return None
    return [starts[-1], *pieces[0].shape[1:]] if pieces[0].shape else []
