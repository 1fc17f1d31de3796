"""Give the few names in pickles that are known here a meaning: NumPy's arrays, OrderedDict, bytes.

A meaning is a function of ours that takes the arguments in the file, whatever they are, and checks
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_DIMENSIONS = 8
ARRAY_TYPES: dict[str, str] = {
    "u1": "u1",
    "b1": "?",
    "i4": "<i4",
    "i8": "<i8",
    "f4": "<f4",
    "f8": "<f8",
}
"""The types of arrays, by the names that pickles give them."""


class PickleError(ValueError):
    """Say what in a pickle is cut short, out of order, or nothing that is read here."""


@dataclass(frozen=True)
class Name:
    """Stand for a function or class that a pickle names; it is never looked up."""

    module: str
    name: str


Meaning = Callable[[tuple[Any, ...]], Any]
"""A function of the arguments in the file, whose result REDUCE gives for a name."""


@dataclass(frozen=True)
class ArrayType:
    """Hold a type of arrays, one of ARRAY_TYPES."""

    code: str


@dataclass
class ArrayPlace:
    """Hold the place of an array, which a pickle makes empty, keeps, and fills after that."""

    kept_as: list[int] = field(default_factory=list)


def text_of(name: Any) -> str:
    """Return a name, which Python 2 has written as bytes."""
    return name.decode("ascii", "backslashreplace") if isinstance(name, bytes) else str(name)


def with_text_keys(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a mapping by names that are text."""
    return {text_of(name): value for name, value in values.items()}


def as_dict(values: list[Any]) -> dict[Any, Any]:
    """Return a dict of keys and values in turn; keys are text, bytes or numbers."""
    if len(values) % 2:
        raise PickleError("it has a key without a value")
    if not all(isinstance(key, (str, bytes, int, float)) for key in values[::2]):
        raise PickleError("it has a key that is neither text nor a number")
    return dict(zip(values[::2], values[1::2], strict=True))


def start_array(arguments: tuple[Any, ...]) -> ArrayPlace:
    """Return the place of an array: _reconstruct(ndarray, (0,), 'b')."""
    if len(arguments) != 3 or arguments[0] != NDARRAY:
        raise PickleError("it makes an array of an unknown kind")
    return ArrayPlace()


def array_type(arguments: tuple[Any, ...]) -> ArrayType:
    """Return a type of arrays: dtype('u1', align, copy)."""
    code = arguments[0]
    code = code.decode("ascii", "replace") if isinstance(code, bytes) else code
    # A nested tuple has no hash that is safe to take: C code would walk it without end.
    if not isinstance(code, str) or code not in ARRAY_TYPES:
        raise PickleError(f"it has an array of a type that is none of {', '.join(ARRAY_TYPES)}")
    return ArrayType(code)


def check_byte_order(state: Any) -> None:
    """Refuse types whose numbers begin with their highest byte, or that have fields."""
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
    if order not in (b"|", b"<", "|", "<") or any(part is not None for part in state[2:5]):
        raise PickleError("it has an array of an unknown kind")


def filled_array(state: Any) -> NDArray[Any]:
    """Return an array of (version, shape, type, whether columns come first, bytes)."""
    _, shape, kind, is_fortran, content = state
    is_shape = isinstance(shape, tuple) and len(shape) <= MOST_DIMENSIONS
    if not is_shape or not all(type(length) is int and length >= 0 for length in shape):
        raise PickleError("it has an array whose shape is none")
    if not isinstance(kind, ArrayType) or not isinstance(content, bytes):
        raise PickleError("it has an array whose type or content is none")
    dtype = np.dtype(ARRAY_TYPES[kind.code])
    if math.prod(shape) * dtype.itemsize != len(content):
        raise PickleError(f"it has {len(content)} bytes for an array of shape {shape}")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")


def encoded(arguments: tuple[Any, ...]) -> bytes:
    """Return bytes that Python 3 writes as text: encode('...', 'latin1')."""
    text, encoding = arguments
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise PickleError("it has text in an unknown encoding")
    return text.encode("latin-1")


def ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """Return an empty dict, which keeps the order of its keys, or one of a list of pairs."""
    if not arguments:
        return {}
    (pairs,) = arguments
    return as_dict([part for pair in pairs for part in pair])


def empty_bytes(arguments: tuple[Any, ...]) -> bytes:
    """Return no bytes, which Python 3 writes as bytes()."""
    if arguments:
        raise PickleError("it makes bytes of something")
    return b""


NDARRAY = Name("numpy", "ndarray")
ALWAYS: dict[Name, Meaning] = {
    Name("numpy.core.multiarray", "_reconstruct"): start_array,
    Name("numpy._core.multiarray", "_reconstruct"): start_array,
    Name("numpy", "dtype"): array_type,
    Name("_codecs", "encode"): encoded,
    Name("__builtin__", "bytes"): empty_bytes,
    Name("collections", "OrderedDict"): ordered_dict,
}
"""The names that have a meaning in every pickle."""
