"""Read the fenced blocks of the README and the docs, and how each is to be tried.

```bash              runs in seconds in the sandbox of tests/docs/conftest.py
```bash slow         runs too, and takes minutes
```bash site: GPU    cannot run here; its commands are parsed by the programs' own parsers
```python            runs in the sandbox; lines of `>>>` are compared with their output
```yaml              is parsed
```text              is output, and not tried
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n]*)\n(?P<body>.*?)^(?P=indent)```", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """Hold a fenced block of a page."""

    page: Path
    line: int
    info: str
    body: str

    @property
    def language(self) -> str:
        """Return the language of the fence."""
        return self.info.split(" ")[0]

    @property
    def how(self) -> str:
        """Return how it is tried: `slow`, `site`, or nothing."""
        return self.info.partition(" ")[2].partition(":")[0]

    @property
    def name(self) -> str:
        """Return a name for a test: page and line."""
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """Return the commands of a block, continued lines joined and comments left out."""
        joined = re.sub(r"\\\n\s*", " ", self.body)
        lines = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined.splitlines())
        return [line for line in lines if line]


def pages() -> list[Path]:
    """Return the pages whose blocks are tried."""
    first = Path("README.md"), Path("CONTRIBUTING.md"), Path("slurm/containers/README.md")
    return [*first, *sorted(Path("docs").rglob("*.md"))]


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        indent = len(found["indent"])
        body = "".join(row[indent:] for row in found["body"].splitlines(keepends=True))
        yield Block(page, line, found["info"].strip(), body)


def all_blocks(language: str) -> list[Block]:
    """Return the blocks of all pages in one language."""
    return [b for page in pages() for b in blocks_of(page) if b.language == language]
