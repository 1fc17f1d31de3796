"""Write files as the published code does: Python 2.7, its pickle module, torch 1.0.

The opcodes are written here by hand, because no Python of today writes them: Python 2 has byte
strings, and puts whole numbers of more than 31 bits down in digits.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {torch.float32: "FloatStorage", torch.int64: "LongStorage"}


@dataclass(frozen=True)
class Ordered:
    """A collections.OrderedDict, with the attributes that torch gives a state_dict."""

    items: Mapping[str, Any]
    attributes: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Long:
    """A whole number of Python 2's type long, of any length."""

    value: int


class Writer:
    """Writes one pickle of protocol 2; puts every value that may be meant again into the memo."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x02")
        self.storages: list[Tensor] = []
        self._num_kept = 0

    def keep(self) -> None:
        """Write BINPUT or LONG_BINPUT, as Python does after every container, text and call."""
        number, self._num_kept = self._num_kept, self._num_kept + 1
        self.out += b"q%c" % number if number < 256 else b"r" + struct.pack("<I", number)

    def write(self, value: Any) -> None:
        """Write a value."""
        if value is None or isinstance(value, bool):
            self.out += {None: b"N", True: b"\x88", False: b"\x89"}[value]
        elif isinstance(value, int):
            self.out += whole(value)
        elif isinstance(value, Long):
            content = value.value.to_bytes(value.value.bit_length() // 8 + 1, "little", signed=True)
            self.out += b"\x8a%c%b" % (len(content), content)
        elif isinstance(value, float):
            self.out += b"G" + struct.pack(">d", value)
        elif isinstance(value, str):
            content = value.encode()
            self.out += b"U%c%b" % (len(content), content)
            self.keep()
        elif isinstance(value, tuple):
            self.write_tuple(value)
        elif isinstance(value, list):
            self.out += b"]"
            self.keep()
            self.write_marked(value, one=b"a", several=b"e")
        elif isinstance(value, dict):
            self.out += b"}"
            self.keep()
            pairs = [part for pair in value.items() for part in pair]
            self.write_marked(pairs, one=b"s", several=b"u", length_of_one=2)
        elif isinstance(value, Ordered):
            self.write_ordered(value)
        elif isinstance(value, Tensor):
            self.write_tensor(value)
        else:
            raise TypeError(type(value))

    def write_tuple(self, values: tuple[Any, ...]) -> None:
        """Write a tuple; longer ones than three lie above a mark."""
        if not values:
            self.out += b")"
            return
        if len(values) > 3:
            self.out += b"("
        for value in values:
            self.write(value)
        self.out += {1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(values), b"t")
        self.keep()

    def write_marked(
        self, values: list[Any], one: bytes, several: bytes, length_of_one: int = 1
    ) -> None:
        """Write the content of a list or dict, one item without a mark."""
        if len(values) > length_of_one:
            self.out += b"("
        for value in values:
            self.write(value)
        if values:
            self.out += several if len(values) > length_of_one else one

    def name(self, module: str, name: str) -> None:
        """Write GLOBAL."""
        self.out += f"c{module}\n{name}\n".encode()
        self.keep()

    def write_ordered(self, ordered: Ordered) -> None:
        """Write the call that makes an OrderedDict of a list of pairs."""
        self.name("collections", "OrderedDict")
        self.write(([[key, value] for key, value in ordered.items.items()],))
        self.out += b"R"
        self.keep()
        if ordered.attributes:
            self.write(dict(ordered.attributes))
            self.out += b"b"

    def write_tensor(self, tensor: Tensor) -> None:
        """Write the call that makes a tensor of its storage, which lies outside the pickle."""
        storage = tensor.detach().contiguous()
        self.storages.append(storage)
        self.name("torch._utils", "_rebuild_tensor_v2")
        self.out += b"(("
        self.write("storage")
        self.name("torch", STORAGES[tensor.dtype])
        self.write(str(94_000_000_000_000 + 16 * len(self.storages)))
        self.write("cuda:0")
        self.write(storage.numel())
        self.write(None)
        self.out += b"t"
        self.keep()
        self.out += b"Q"
        for value in (0, tuple(storage.shape), tuple(storage.stride()), False, Ordered({})):
            self.write(value)
        self.out += b"t"
        self.keep()
        self.out += b"R"
        self.keep()


def whole(value: int) -> bytes:
    """Return the opcode of a whole number; INT in digits beyond 31 bits, as ids of objects are."""
    if 0 <= value < 256:
        return b"K%c" % value
    if 0 <= value < 65_536:
        return b"M" + struct.pack("<H", value)
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"I%d\n" % value


def pickled(value: Any) -> tuple[bytes, list[Tensor]]:
    """Return a pickle, and the storages that it names."""
    writer = Writer()
    writer.write(value)
    return bytes(writer.out) + b".", writer.storages


def saved(content: Any) -> bytes:
    """Return what torch.save of torch 1.0 writes: five pickles, then the numbers."""
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": PROTOCOL, "type_sizes": sizes, "little_endian": True}
    body, storages = pickled(content)
    keys = [str(94_000_000_000_000 + 16 * at) for at in range(1, len(storages) + 1)]
    parts = [pickled(Long(MAGIC))[0], pickled(PROTOCOL)[0], pickled(system)[0]]
    numbers = [struct.pack("<q", s.numel()) + s.numpy().tobytes() for s in storages]
    return b"".join([*parts, body, pickled(keys)[0], *numbers])


def state_dict(tensors: Mapping[str, Tensor]) -> Ordered:
    """Return a state_dict of torch 1.0, which carries the versions of its modules."""
    return Ordered(tensors, {"_metadata": Ordered({"": {"version": 1}})})


@dataclass(frozen=True)
class Discovered:
    """The neighbourhoods of a round of the published code."""

    anchors_A: Tensor
    neighbours_AK: Tensor
    entropy_N: Tensor
    consistency: float


def checkpoint(
    net: Mapping[str, Tensor],
    momentum: Mapping[str, Tensor],
    bank_ND: Tensor,
    found: Discovered,
    *,
    round_index: int,
    epoch: int,
) -> bytes:
    """Return a checkpoint of the published code; by its names and in its order."""
    buffers = [{"momentum_buffer": tensor} for tensor in momentum.values()]
    ids = [140_245_000_000_000 + 72 * at for at in range(len(buffers))]
    group = {
        "lr": 0.03,
        "momentum": 0.9,
        "dampening": 0,
        "weight_decay": 5e-4,
        "nesterov": True,
        "params": ids,
    }
    is_anchor_N = torch.zeros(len(bank_ND), dtype=torch.bool)
    is_anchor_N[found.anchors_A] = True
    instances = (~is_anchor_N).nonzero().flatten()
    position_N = torch.empty(len(bank_ND), dtype=torch.int64)
    position_N[found.anchors_A] = torch.arange(len(found.anchors_A))
    position_N[instances] = -torch.arange(len(instances)) - 1
    return saved(
        {
            "net": state_dict(net),
            "optimizer": {
                "state": dict(zip(ids, buffers, strict=True)),
                "param_groups": [group],
            },
            "ANs_discovery": state_dict(
                {
                    "samples_num": torch.tensor(len(bank_ND)),
                    "anchor_indexes": found.anchors_A,
                    "instance_indexes": instances,
                    "position": position_N,
                    "neighbours": found.neighbours_AK,
                    "entropy": found.entropy_N.float(),
                    "consistency": torch.tensor(found.consistency),
                }
            ),
            "npc": state_dict({"params": torch.tensor([0.1, 0.5]), "memory": bank_ND}),
            "acc": 0.8123,
            "epoch": epoch,
            "round": round_index,
            "session": "20190301-120000",
        }
    )
