"""Describe an attempt: the files that lie there, and which door is given which of them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.attack.campaign import Trial
from tests.attack.configs.worker import attempt

FIFO, LINK = "<fifo>", "<link> "
"""Contents that stand for a pipe, and for a link to what follows."""
SHOWN = 120
MOST_SHOWN = 12


@dataclass(frozen=True)
class Attempt:
    """Holds what a door is given."""

    how: str = "config"
    files: Mapping[str, str] = field(default_factory=dict)
    """Content by path; each letter is a byte."""
    names: Sequence[str] = ()
    """The files that the door is given."""
    overrides: Sequence[str] = ()
    wanted: str = ""
    """accepted or refused, where only one of them is right."""
    says: Sequence[str] = ()
    """What a message has to name."""
    kept: Mapping[str, Any] = field(default_factory=dict)
    """Values by key that an accepted config has to have."""
    size: Mapping[str, Any] = field(default_factory=dict)
    weight: str = "light"

    def trial(self, what: str = "") -> Trial:
        """Return the trial, described by what it is given where nothing else is said."""
        return Trial(f"{self.how}: {what or self._shown()}", self.carry_out)

    def carry_out(self, folder: Path) -> str:
        """Write the files, and try the door."""
        photos = PHOTOS if self.how == "proposal" else {}
        for name, content in {**self.files, **photos}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content == FIFO:
                os.mkfifo(path)
            elif content.startswith(LINK):
                path.symlink_to(content.removeprefix(LINK))
            else:
                path.write_bytes(content.encode("latin-1"))
        given = {
            "how": self.how,
            "folder": str(folder),
            "names": list(self.names),
            "overrides": list(self.overrides),
            "wanted": self.wanted,
            "says": list(self.says),
            "kept": dict(self.kept),
            "size": dict(self.size),
        }
        return attempt(given, self.weight)

    def _shown(self) -> str:
        """Return names, overrides and files, each cut where it is long."""
        parts = [*self.names, *map(repr, self.overrides), str(dict(self.size) or "")]
        parts += [f"{name} with {content[:SHOWN]!r}" for name, content in self.files.items()]
        return ", ".join(part[: SHOWN + 60] for part in parts[:MOST_SHOWN] if part)


def png(side: int) -> str:
    """Return a grey image as the content of a file."""
    rows = b"".join(b"\0" + bytes([128]) * side for _ in range(side))
    header = side.to_bytes(4, "big") * 2 + b"\x08\0\0\0\0"
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        checked = name + body
        content += len(body).to_bytes(4, "big") + checked + zlib.crc32(checked).to_bytes(4, "big")
    return content.decode("latin-1")


PHOTOS = {f"photos/{at}.png": png(40) for at in range(3)}
"""Images of somebody's own, for which a config is proposed."""


def in_bytes(text: str) -> str:
    """Return a text as the content of a file in UTF-8; what has no UTF-8 is left out."""
    return text.encode("utf-8", errors="replace").decode("latin-1")
