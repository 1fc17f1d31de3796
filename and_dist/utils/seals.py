"""Seal what this program writes to read it again, and tell what is no longer as written. No torch.

A seal is a checksum. It finds damage, such as a flipped bit, a lost line, or two files that have
changed places. It does not hold up anybody who wants to write something else. What an earlier
revision wrote has no seal, and is taken as it is.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

SEAL = "crc"
"""The last key of a sealed record."""
NUMBER = "line"
"""The key before it in a sealed line, which holds the number of the line."""
NOT_AS_WRITTEN = "it is not as it was written"
_LINE = re.compile(rb'(\{.*, "line": (\d{1,12})), "crc": "([0-9a-f]{8})"\}\n', re.DOTALL)
_TEXT = re.compile(r"# written by and-dist, crc ([0-9a-f]{8})\n")


class Line(NamedTuple):
    """Holds the JSON of a line, and its number if it has one."""

    content: bytes
    number: int | None


def seal(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a record that ends with the checksum of its content and of its file's name."""
    bare = {key: value for key, value in record.items() if key != SEAL}
    return {**bare, SEAL: _sum_of(bare, name)}


def unseal(value: Any, name: str) -> Any:
    """Return a record without its seal; raise ValueError where the seal is another's."""
    if not isinstance(value, dict) or SEAL not in value:
        return value
    bare = {key: inside for key, inside in value.items() if key != SEAL}
    if value[SEAL] != _sum_of(bare, name):
        raise ValueError(NOT_AS_WRITTEN)
    return bare


def seal_line(record: Mapping[str, Any], number: int) -> bytes:
    """Return a record as a line of JSON that tells its own number and checksum."""
    content = json.dumps({**record, NUMBER: number})[:-1].encode()
    return b'%b, "crc": "%08x"}\n' % (content, zlib.crc32(content))


def unseal_line(line: bytes) -> Line:
    """Return the JSON of a line and its number; raise ValueError where the seal is another's."""
    found = _LINE.fullmatch(line)
    if found is None:
        return Line(line, None)
    content, number, checksum = found.groups()
    if int(checksum, 16) != zlib.crc32(content):
        raise ValueError(NOT_AS_WRITTEN)
    return Line(content + b"}", int(number))


def seal_text(text: str, name: str = "") -> str:
    """Return a text below a comment line that holds the checksum of a name and of the text.

    The name tells files apart that have the same one in different places.
    """
    return f"# written by and-dist, crc {zlib.crc32(f'{name}{text}'.encode()):08x}\n{text}"


def is_as_written(text: str, name: str = "") -> bool:
    """Return whether a text is what its comment line says, or has none."""
    found = _TEXT.match(text)
    written = f"{name}{text[found.end() :]}" if found else ""
    return found is None or int(found[1], 16) == zlib.crc32(written.encode())


def _sum_of(record: Mapping[str, Any], name: str) -> str:
    """Return the checksum of a record and a file's name."""
    plain = json.loads(json.dumps(record))  # keys that are numbers become text
    return f"{zlib.crc32(f'{name} {json.dumps(plain)}'.encode()):08x}"
