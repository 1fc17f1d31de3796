"""Read pickles of other programs without ever calling what they name.

A pickle is a program for a machine with a stack: GLOBAL pushes a function or class by its name,
REDUCE calls it. Python's pickle module looks the name up, so whoever wrote the file chooses what is
called, and with which arguments. Here a name stays a `Name`, and the few that data sets and
checkpoints use have a meaning that pickled_names or the caller gives them. All else is refused.

Protocols 0 to 2 are read, which Python 2, NumPy of its time and torch.save write.
"""

from __future__ import annotations

import struct
from codecs import escape_decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from and_dist.utils.pickled_names import (
    ALWAYS,
    NDARRAY,
    ArrayPlace,
    ArrayType,
    Meaning,
    Name,
    PickleError,
    as_dict,
    check_byte_order,
    filled_array,
)

HIGHEST_PROTOCOL = 2
LONGEST_NUMBER = 1024
"""The most bytes or digits of a whole number."""


@dataclass(frozen=True)
class _Mark:
    """Lie on the stack where a list, tuple or dict begins."""


def read_pickle(
    content: bytes,
    meanings: Mapping[Name, Meaning] | None = None,
    mentioned: frozenset[Name] = frozenset(),
    load_persistent: Callable[[Any], Any] | None = None,
) -> tuple[Any, int]:
    """Return what a pickle holds, and how many bytes it takes; raise PickleError for all else.

    `meanings` are names that may be called, beside those of NumPy's arrays and OrderedDict; names
    that are `mentioned` are values and no more. `load_persistent` gives a value that lies outside
    the pickle by its id.
    """
    known = {**ALWAYS, **(meanings or {})}
    reader = _Reader(content, known, mentioned | {NDARRAY}, load_persistent)
    try:
        return reader.read(), reader.at
    except PickleError:
        raise
    except (IndexError, ValueError, TypeError, struct.error, OverflowError, MemoryError) as error:
        raise PickleError(f"it is damaged at byte {reader.at}: {error}") from None


class _Reader:
    """Is the machine with a stack; each method does what one or a few opcodes ask for."""

    def __init__(
        self,
        content: bytes,
        meanings: Mapping[Name, Meaning],
        mentioned: frozenset[Name],
        load_persistent: Callable[[Any], Any] | None,
    ) -> None:
        self.at = 0
        self._content = content
        self._meanings = meanings
        self._mentioned = mentioned
        self._load_persistent = load_persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Run the program to its end, and return the one value that it leaves."""
        while (code := self.take(1)) != b".":
            operation = OPERATIONS.get(code)
            if operation is None:
                raise PickleError(f"it has {code!r} at byte {self.at - 1}, which is not read here")
            operation(self)
        if len(self._stack) != 1:
            raise PickleError(f"it leaves {len(self._stack)} values")
        return self.pop()

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if count < 0 or self.at + count > len(self._content):
            raise PickleError(f"it is cut short at byte {self.at}")
        self.at += count
        return self._content[self.at - count : self.at]

    def line(self) -> bytes:
        """Return the bytes up to the end of the line."""
        end = self._content.find(b"\n", self.at)
        if end < 0:
            raise PickleError(f"it is cut short at byte {self.at}")
        return self.take(end + 1 - self.at)[:-1]

    def number(self, form: str) -> int:
        """Return a number that is stored in a form of the struct module."""
        (found,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(found)

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def pop(self) -> Any:
        """Take a value off the stack."""
        value = self._stack.pop()
        if isinstance(value, (_Mark, ArrayPlace)):
            raise PickleError(f"it has no value where it wants one, at byte {self.at}")
        return value

    def pop_to_mark(self) -> list[Any]:
        """Take all values above the mark off the stack, and the mark."""
        values = []
        while not isinstance(self._stack[-1], _Mark):
            values.append(self.pop())
        self._stack.pop()
        return values[::-1]

    def drop_to_mark(self) -> None:
        """Drop all values above the mark, and the mark."""
        self.pop_to_mark()

    def top(self, kind: type[Any]) -> Any:
        """Return the value on top of the stack, which has to be of a kind."""
        if not isinstance(self._stack[-1], kind):
            raise PickleError(f"it has no {kind.__name__} where it wants one, at byte {self.at}")
        return self._stack[-1]

    def check_protocol(self) -> None:
        """Refuse protocols from 3 on."""
        protocol = self.number("<B")
        if protocol > HIGHEST_PROTOCOL:
            raise PickleError(f"it is of protocol {protocol}; 0 to {HIGHEST_PROTOCOL} are read")

    def push_written_number(self) -> None:
        """Push a whole number, or a truth value, that is written in digits."""
        text = self.line()
        self.push({b"00": False, b"01": True}.get(text) if text in (b"00", b"01") else whole(text))

    def push_long(self, form: str) -> None:
        """Push a whole number of any length."""
        size = self.number(form)
        if size > LONGEST_NUMBER:
            raise PickleError(f"it has a number of {size} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def push_quoted(self) -> None:
        """Push bytes that are written between quotes."""
        text = self.line()
        if len(text) < 2 or text[:1] not in (b"'", b'"') or text[-1:] != text[:1]:
            raise PickleError(f"it has a string without quotes at byte {self.at}")
        self.push(escape_decode(text[1:-1])[0])

    def push_tuple(self, count: int) -> None:
        """Push a tuple of the last values."""
        values = [self.pop() for _ in range(count)]
        self.push(tuple(values[::-1]))

    def append(self) -> None:
        """Append a value to a list."""
        value = self.pop()
        self.top(list).append(value)

    def extend(self) -> None:
        """Append the values above the mark to a list."""
        values = self.pop_to_mark()
        self.top(list).extend(values)

    def set_item(self) -> None:
        """Set one item of a dict."""
        value, key = self.pop(), self.pop()
        self.top(dict).update(as_dict([key, value]))

    def set_items(self) -> None:
        """Set the items above the mark of a dict."""
        values = self.pop_to_mark()
        self.top(dict).update(as_dict(values))

    def keep(self, place: int) -> None:
        """Keep the value on top of the stack for later."""
        value = self._stack[-1]
        if isinstance(value, _Mark):
            raise PickleError(f"it keeps no value at byte {self.at}")
        if isinstance(value, ArrayPlace):
            value.kept_as.append(place)
        self._memo[place] = value

    def push_kept(self, place: int) -> None:
        """Push what was kept."""
        if place not in self._memo:
            raise PickleError(f"it wants value {place}, which it has not kept")
        self.push(self._memo[place])

    def push_name(self) -> None:
        """Push a name, if it is one that has a meaning here."""
        module, name = (self.line().decode("utf-8", "backslashreplace") for _ in range(2))
        found = Name(module, name)
        if found not in self._meanings and found not in self._mentioned:
            raise PickleError(f"it names {module}.{name}, which is no plain value")
        self.push(found)

    def call(self) -> None:
        """Push what a name means with some arguments."""
        arguments, name = self.pop(), self.pop()
        if not isinstance(name, Name) or name not in self._meanings:
            raise PickleError(f"it calls what cannot be called, at byte {self.at}")
        if not isinstance(arguments, tuple):
            raise PickleError(f"it calls {name.module}.{name.name} without arguments")
        self.push(self._meanings[name](arguments))

    def build(self) -> None:
        """Fill an array; drop what is written beside a dict or a type, such as versions."""
        state = self.pop()
        made = self._stack[-1]
        if isinstance(made, ArrayPlace):
            self._stack[-1] = filled_array(state)
            for place in made.kept_as:
                self._memo[place] = self._stack[-1]
        elif isinstance(made, ArrayType):
            check_byte_order(state)
        elif not isinstance(made, dict):
            raise PickleError(f"it changes what cannot be changed, at byte {self.at}")

    def push_persistent(self) -> None:
        """Push a value from outside the pickle."""
        if self._load_persistent is None:
            raise PickleError("it wants a value from outside")
        self.push(self._load_persistent(self.pop()))


def whole(text: bytes) -> int:
    """Return a whole number that is written in digits."""
    if len(text) > LONGEST_NUMBER:
        raise PickleError(f"it has a number of {len(text)} digits")
    return int(text)


OPERATIONS: dict[bytes, Callable[[_Reader], None]] = {
    b"\x80": _Reader.check_protocol,
    b"(": lambda reader: reader.push(_Mark()),
    b"0": lambda reader: reader.pop(),
    b"1": _Reader.drop_to_mark,
    b"N": lambda reader: reader.push(None),
    b"\x88": lambda reader: reader.push(True),
    b"\x89": lambda reader: reader.push(False),
    b"I": _Reader.push_written_number,
    b"L": lambda reader: reader.push(whole(reader.line().removesuffix(b"L"))),
    b"J": lambda reader: reader.push(reader.number("<i")),
    b"K": lambda reader: reader.push(reader.number("<B")),
    b"M": lambda reader: reader.push(reader.number("<H")),
    b"\x8a": lambda reader: reader.push_long("<B"),
    b"\x8b": lambda reader: reader.push_long("<i"),
    b"F": lambda reader: reader.push(float(reader.line())),
    b"G": lambda reader: reader.push(struct.unpack(">d", reader.take(8))[0]),
    b"S": _Reader.push_quoted,
    b"T": lambda reader: reader.push(reader.take(reader.number("<i"))),
    b"U": lambda reader: reader.push(reader.take(reader.number("<B"))),
    b"V": lambda reader: reader.push(reader.line().decode("raw-unicode-escape")),
    b"X": lambda reader: reader.push(reader.take(reader.number("<I")).decode()),
    b"]": lambda reader: reader.push([]),
    b"l": lambda reader: reader.push(reader.pop_to_mark()),
    b"a": _Reader.append,
    b"e": _Reader.extend,
    b")": lambda reader: reader.push(()),
    b"t": lambda reader: reader.push(tuple(reader.pop_to_mark())),
    b"\x85": lambda reader: reader.push_tuple(1),
    b"\x86": lambda reader: reader.push_tuple(2),
    b"\x87": lambda reader: reader.push_tuple(3),
    b"}": lambda reader: reader.push({}),
    b"d": lambda reader: reader.push(as_dict(reader.pop_to_mark())),
    b"s": _Reader.set_item,
    b"u": _Reader.set_items,
    b"p": lambda reader: reader.keep(whole(reader.line())),
    b"q": lambda reader: reader.keep(reader.number("<B")),
    b"r": lambda reader: reader.keep(reader.number("<I")),
    b"g": lambda reader: reader.push_kept(whole(reader.line())),
    b"h": lambda reader: reader.push_kept(reader.number("<B")),
    b"j": lambda reader: reader.push_kept(reader.number("<I")),
    b"c": _Reader.push_name,
    b"R": _Reader.call,
    b"b": _Reader.build,
    b"Q": _Reader.push_persistent,
}
"""The method of each opcode. Those that pickletools lists and that are not here make objects of
classes that the file names, or belong to protocols from 3 on."""
