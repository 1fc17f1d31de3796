"""Read what torch.save has written: tensors and plain values, and never anything that is called.

A file is a zip archive with a pickle and one member for each storage, or, up to torch 1.5, four
pickles, a list of storages and their content. Tensors are read when they are asked for. X any
number of elements.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from and_dist.utils.pickled_names import Name, PickleError, text_of, with_text_keys
from and_dist.utils.plain_files import Piece, check_regular, open_regular
from and_dist.utils.plain_pickle import read_pickle

OLD_MAGIC = 0x1950A86A20F9469CFC6C
"""The number with which a file begins that is no zip archive."""
ZIP_MAGIC = b"PK\x03\x04"
STORAGES = {
    Name("torch", f"{kind}Storage"): dtype
    for kind, dtype in {
        "Float": torch.float32,
        "Double": torch.float64,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
LENGTH = struct.Struct("<q")
MOST_PICKLE_BYTES = 10**8
"""The most bytes of the pickles of a file, which name its tensors."""
MOST_STORAGE_BYTES = 2**30
"""The most bytes of a storage that holds other numbers beside a tensor's."""


@dataclass(frozen=True)
class Storage:
    """Name where the numbers of one or more tensors lie."""

    key: str
    dtype: torch.dtype
    length: int

    @property
    def num_bytes(self) -> int:
        """Return the size of its content."""
        return self.length * self.dtype.itemsize


@dataclass(frozen=True)
class SavedTensor:
    """Describe a tensor of a file; `load` reads it."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    read: Callable[[Storage], bytes]

    @property
    def num_elements(self) -> int:
        """Return how many numbers it has."""
        return math.prod(self.size)

    def load(self) -> Tensor:
        """Return the tensor; raise PickleError if its storage is far longer than it is."""
        own_bytes = self.num_elements * self.storage.dtype.itemsize
        if self.storage.num_bytes > max(own_bytes, MOST_STORAGE_BYTES):
            raise PickleError(f"storage {self.storage.key} has {self.storage.num_bytes:,} bytes")
        content = bytearray(self.read(self.storage))
        if not self.num_elements:
            return torch.empty(self.size, dtype=self.storage.dtype)
        numbers_X = torch.frombuffer(content, dtype=self.storage.dtype)
        return numbers_X.as_strided(self.size, self.stride, self.offset).clone()


def read_torch_file(file: Path) -> Any:
    """Return the content of a file, with a SavedTensor for each tensor.

    Raise PickleError if there is more in it than tensors and plain values, or less, and OSError if
    it is no regular file.
    """
    is_zip = _read_bytes(file, 0, len(ZIP_MAGIC)) == ZIP_MAGIC
    return _read_zip(file) if is_zip else _read_old(file)


def _read_bytes(file: Path, start: int, count: int) -> bytes:
    """Return up to `count` bytes of a file from byte `start` on."""
    descriptor, length = open_regular(file)
    try:
        return Piece(descriptor, 0, length).read_at(start, count)
    finally:
        os.close(descriptor)


def _read_zip(file: Path) -> Any:
    with _opened(file) as archive:
        pickles = [name for name in archive.namelist() if name.count("/") == 1]
        pickles = [name for name in pickles if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise PickleError("it has no data.pkl, or more than one")
        folder = pickles[0].removesuffix("data.pkl")
        content = _member(archive, pickles[0], MOST_PICKLE_BYTES)

    def read(storage: Storage) -> bytes:
        with _opened(file) as archive:
            found = _member(archive, f"{folder}data/{storage.key}", storage.num_bytes)
        if len(found) != storage.num_bytes:
            raise PickleError(f"storage {storage.key} has {len(found)} bytes")
        return found

    return _read_tensors(content, read)[0]


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive; raise PickleError for whatever zipfile raises at a damaged one."""
    try:
        descriptor, _ = open_regular(file)
        with os.fdopen(descriptor, "rb") as opened, zipfile.ZipFile(opened) as archive:
            yield archive
    except PickleError:
        raise
    except (zipfile.BadZipFile, OSError, RuntimeError, EOFError, ValueError) as error:
        raise PickleError(f"its archive is damaged: {error}") from None


def _member(archive: zipfile.ZipFile, name: str, most_bytes: int) -> bytes:
    """Return a member of at most `most_bytes`, which torch never compresses."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise PickleError(f"it has no {name}") from None
    if info.compress_type != zipfile.ZIP_STORED:
        raise PickleError(f"its {name} is compressed")
    if info.file_size > most_bytes:
        raise PickleError(f"its {name} has {info.file_size:,} bytes")
    return archive.read(info)


def _read_old(file: Path) -> Any:
    places: dict[str, int] = {}

    def read(storage: Storage) -> bytes:
        return _read_bytes(file, places[storage.key], storage.num_bytes)

    length_of_file, content = check_regular(file), _read_bytes(file, 0, MOST_PICKLE_BYTES)

    at, values = 0, []
    storages: dict[str, Storage] = {}
    for _ in range(5):  # magic number, protocol, byte order, content, keys of the storages
        value, length = _read_tensors(content[at:], read, storages)
        at += length
        values.append(value)
        if values[0] != OLD_MAGIC:
            raise PickleError("it is no file of torch.save")
    *_, about, found, keys = values
    if not isinstance(about, dict) or with_text_keys(about).get("little_endian") is not True:
        raise PickleError("its numbers begin with their highest byte")
    for key in map(text_of, keys) if isinstance(keys, list) else ():
        if key not in storages:
            raise PickleError("it lists a storage that no tensor has")
        (length,) = LENGTH.unpack(_read_bytes(file, at, LENGTH.size).ljust(LENGTH.size, b"\xff"))
        at += LENGTH.size
        if length != storages[key].length or at + storages[key].num_bytes > length_of_file:
            raise PickleError(f"storage {key} is cut short")
        places[key] = at
        at += storages[key].num_bytes
    if places.keys() != storages.keys():
        raise PickleError("it lacks a storage")
    return found


def _read_tensors(
    content: bytes, read: Callable[[Storage], bytes], storages: dict[str, Storage] | None = None
) -> tuple[Any, int]:
    """Return what a pickle holds, and its length; note its storages."""
    noted = {} if storages is None else storages

    def load_storage(about: Any) -> Storage:
        kind, name, key, _location, length = about[:5] if isinstance(about, tuple) else (None,) * 5
        is_known = kind in ("storage", b"storage") and isinstance(name, Name) and name in STORAGES
        if not is_known or not _is_count(length) or (len(about) > 5 and about[5] is not None):
            raise PickleError("it has a storage of an unknown kind")
        if not isinstance(key, (str, bytes)):
            raise PickleError("it has a storage without a name")
        key = text_of(key)
        storage = Storage(key, STORAGES[name], length)
        if noted.setdefault(key, storage) != storage:
            raise PickleError(f"it has two storages {key}")
        return storage

    def rebuild(arguments: tuple[Any, ...]) -> SavedTensor:
        storage, offset, size, stride = arguments[:4]
        is_shape = isinstance(size, tuple) and isinstance(stride, tuple)
        if not isinstance(storage, Storage) or not is_shape or len(size) != len(stride):
            raise PickleError("it has a tensor of an unknown kind")
        if not all(map(_is_count, (offset, *size, *stride))):
            raise PickleError("it has a tensor whose shape is none")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        elements = math.prod(size)
        if elements > storage.length or (elements and last >= storage.length):
            raise PickleError(f"it has a tensor that is longer than storage {storage.key}")
        return SavedTensor(storage, offset, size, stride, read)

    return read_pickle(
        content,
        {
            Name("torch._utils", "_rebuild_tensor_v2"): rebuild,
            Name("torch._utils", "_rebuild_tensor"): rebuild,
            Name("torch._utils", "_rebuild_parameter"): _first,
            Name("torch", "Size"): _first,
        },
        frozenset(STORAGES),
        load_storage,
    )


def _first(arguments: tuple[Any, ...]) -> Any:
    """Return the one argument that says what something is."""
    return arguments[0]


def _is_count(value: Any) -> bool:
    """Return whether a value is a whole number from 0 on that a tensor can have."""
    return type(value) is int and 0 <= value < 2**48
