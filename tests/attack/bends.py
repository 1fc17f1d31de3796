"""Ways to damage one file: by bits, by lines, as a whole, or by somebody's hand."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.attack.access.bent_folders import RAW, bend_text

MOST_FLIPS = 8


@dataclass(frozen=True)
class Bend:
    """One way to damage a file; `is_forged` if its author may have made it look whole."""

    what: str
    apply: Callable[[Path], object]
    is_forged: bool = False


def flip_bits(path: Path, chance: random.Random, count: int) -> None:
    """Flip bits anywhere in a file."""
    content = bytearray(path.read_bytes())
    for _ in range(count if content else 0):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def flip_digit(path: Path, chance: random.Random) -> None:
    """Make one digit another, as a flip of one of its lower bits does: it still parses."""
    content = bytearray(path.read_bytes())
    digits = [at for at, byte in enumerate(content) if byte in b"23456789"]
    if digits:
        content[chance.choice(digits)] ^= 1
    path.write_bytes(content)


def cut_short(path: Path, chance: random.Random) -> None:
    """Cut a file anywhere."""
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))] if content else b"")


def change_lines(path: Path, chance: random.Random, how: str) -> None:
    """Delete, repeat or move a line."""
    lines = path.read_bytes().splitlines(keepends=True)
    if len(lines) < 2:
        return
    at, to = chance.randrange(len(lines)), chance.randrange(len(lines))
    line = lines[at] if how == "repeat" else lines.pop(at)
    if how != "delete":
        lines.insert(to, line)
    path.write_bytes(b"".join(lines))


def swap(path: Path, other: Path) -> None:
    """Let two files change their places."""
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def replace_text(path: Path, pattern: str, new: str) -> None:
    """Replace the first match of a regular expression, which has to match."""
    text, count = re.subn(pattern, new, path.read_text(), count=1)
    assert count, f"no {pattern} in {path}"
    path.write_text(text)


def draw_bend(chance: random.Random, file: Path, siblings: Sequence[Path]) -> Bend:
    """Draw a bend of a file; `siblings` are relative files that it may be swapped with."""
    seed = chance.random()

    def by(function: Callable[..., object], *more: object) -> Callable[[Path], object]:
        return lambda path: function(path, random.Random(seed), *more)

    count = chance.randint(1, MOST_FLIPS)
    bends = [
        *[Bend(f"{count} bits flipped by {seed}", by(flip_bits, count))] * 4,
        *[Bend(f"one bit flipped by {seed}", by(flip_bits, 1))] * 4,
        *[Bend(f"cut by {seed}", by(cut_short))] * 2,
        Bend("emptied", lambda path: path.write_bytes(b"")),
        Bend("deleted", Path.unlink),
    ]
    if file.suffix in (".json", ".jsonl", ".yaml", ".txt"):
        bends += [Bend(f"another digit by {seed}", by(flip_digit))] * 4
        bends += [
            Bend(f"{how} a line by {seed}", by(change_lines, how))
            for how in ("delete", "repeat", "move")
        ]
    if file.suffix in (".json", ".jsonl", ".yaml"):

        def by_hand(path: Path) -> object:
            return bend_text(path.parent, path.name, seed)

        bends += [Bend(f"made by hand by {seed}", by_hand, is_forged=True)] * 2
    if siblings:
        other = chance.choice(list(siblings))
        bends.append(Bend(f"swapped with {other}", lambda path: swap(path, path.parent / other)))
    raw = chance.choice(RAW)
    bends.append(Bend(f"holds {raw[:40]!r}", lambda path: path.write_bytes(raw)))
    return chance.choice(bends)
