"""Write the tensors of a checkpoint, a file a rank, and read them whole or some of their rows.

The files are safetensors as torch's distributed checkpoint (DCP) lays them out, so torch can load
them. They are written here because DCP's ranks send each other pickles, and unpickle what arrives;
ours need not send anything.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from and_dist.method.memory_bank import MemoryBank
from and_dist.utils.owned_files import kind_of, open_new

BANK = "bank"
"""The name of the bank among the tensors of a checkpoint."""
SHARDING = "DCP_SHARDING_INFO"
"""The metadata of a file that say where its part of each tensor begins."""
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The names of types in a safetensors file."""
ALIGNMENT = 8
"""The bytes of which the start of the data is a multiple."""


class Part(NamedTuple):
    """Holds rows of a tensor that a rank writes: all, or those from `start` on."""

    name: str
    tensor: Tensor
    start: int = 0


def write_share(
    folder: Path, tensors: Mapping[str, Tensor], bank: MemoryBank | None, rank: int, num_ranks: int
) -> dict[str, dict[str, Any]]:
    """Write what one rank writes of a checkpoint: its rows of the bank, and its share of the rest.

    All ranks are given the same tensors. Return the name of the file with its size and sha256;
    nothing where this rank has nothing to write.
    """
    parts = [Part(name, tensors[name]) for name in share_of(tensors, rank, num_ranks)]
    if bank is not None:
        parts.append(Part(BANK, bank.features_SD, bank.start))
    if not parts:
        return {}
    file = folder / f"shard-{rank + 1:05}-model-00001-of-00001.safetensors"
    return {file.name: _write(file, parts)}


def share_of(tensors: Mapping[str, Tensor], rank: int, num_ranks: int) -> list[str]:
    """Return the names of the tensors that a rank writes, so that all write about as many bytes."""
    written, names = [0] * num_ranks, []
    for name in sorted(tensors, key=lambda name: (-tensors[name].nbytes, name)):
        writer = written.index(min(written))
        written[writer] += tensors[name].nbytes
        if writer == rank:
            names.append(name)
    return names


def _write(file: Path, parts: list[Part]) -> dict[str, Any]:
    """Write one file; return its size and sha256."""
    content = hashlib.sha256()
    with open_new(file, size=sum(part.tensor.nbytes for part in parts)) as output:
        for piece in _content_of(parts):
            output.write(piece)
            content.update(piece)
        size = output.tell()
    return {"bytes": size, "sha256": content.hexdigest()}


def _content_of(parts: list[Part]) -> Iterator[bytes | memoryview]:
    """Yield the content of a file, a tensor at a time."""
    # The widest types come first, so that every tensor lies at a multiple of its type's width.
    parts = sorted(parts, key=lambda part: (-part.tensor.element_size(), part.name))
    header = _header_of(parts)
    yield len(header).to_bytes(8, "little")
    yield header
    for part in parts:
        # One on the CPU is not copied.
        flat = part.tensor.detach().cpu().contiguous().flatten()
        yield flat.view(torch.uint8).numpy().data


def _header_of(parts: list[Part]) -> bytes:
    """Return the JSON that says where in the file each tensor lies, and where in the whole."""
    header, offsets, at = dict[str, Any](), {}, 0
    for name, tensor, start in parts:
        if tensor.dtype not in TYPES:
            raise ValueError(f"{name} is of {tensor.dtype}, which no checkpoint holds")
        header[name] = {
            "dtype": TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        offsets[name] = {"saved_offsets": [start, *[0] * tensor.dim()][: tensor.dim()]}
        at += tensor.nbytes
    header["__metadata__"] = {"format": "pt", "DCP_VERSION": "1.0", SHARDING: json.dumps(offsets)}
    encoded = json.dumps(header).encode()
    return encoded.ljust(math.ceil(len(encoded) / ALIGNMENT) * ALIGNMENT)


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
    if kind_of(file) != "file":
        raise ValueError(f"{file} is a {kind_of(file)} and no file of the checkpoint")
    try:
        with safe_open(file, "pt") as content:
            sharding = json.loads((content.metadata() or {}).get(SHARDING, "{}"))
            for name in content.keys():  # noqa: SIM118 - an open file is no mapping
                start = _start_of(name, sharding)
                shape = content.get_slice(name).get_shape()
                yield name, Piece(start, start + next(iter(shape), 1), file, shape)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} does not say where its tensors begin, it is not a file of ours: {error}"
        ) from None


def _start_of(name: str, sharding: Any) -> int:
    """Return the first row of a part; raise ValueError where the file does not say it."""
    about = sharding.get(name) if isinstance(sharding, dict) else None
    offsets = about.get("saved_offsets") if isinstance(about, dict) else None
    if not isinstance(offsets, list) or not all(type(at) is int and at >= 0 for at in offsets):
        raise ValueError(f"nothing is said of {name}")
    return next(iter(offsets), 0)


def _shape_of(pieces: list[Piece]) -> list[int] | None:
    """Return the shape of a whole tensor; None where its pieces do not make one."""
    starts = [0, *(piece.stop for piece in pieces)]
    is_whole = [piece.start for piece in pieces] == starts[:-1]
    # A narrower piece would be spread over all columns without an error.
    if not is_whole or len({tuple(piece.shape[1:]) for piece in pieces}) != 1:
        return None
    return [starts[-1], *pieces[0].shape[1:]] if pieces[0].shape else []
