"""Count words of the README and the docs, and find words that make them hard to read.

    python -m tests.checks.prose [FILE ...]

Prints lines, words and how often a page says "what"; ends with exit code 1 if all pages together
say it more than twice in 1,000 words, or a fence does not say how it is tried
(tests/docs/fences.py).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

MOST_WHAT = 2.0
"""The most times that 1,000 words may hold "what", all pages together."""
LANGUAGES = ("bash", "console", "python", "text", "yaml", "bibtex")
"""The languages of fences; `text` is output and is not tried."""


def pages() -> list[Path]:
    """Return the pages that are read by people, the README first."""
    docs = sorted(Path("docs").rglob("*.md"))
    return [Path("README.md"), Path("CONTRIBUTING.md"), Path("slurm/containers/README.md"), *docs]


def words_of(text: str) -> list[str]:
    """Return the words of a page, without those of its fences."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"[A-Za-z][A-Za-z'-]*", prose)


def odd_fences(text: str) -> list[str]:
    """Return the opening lines of fences in no known language."""
    openings = re.findall(r"^```(.*)$", text, flags=re.MULTILINE)[::2]
    return [line for line in openings if line.split(" ")[0] not in LANGUAGES]


def main() -> int:
    """Print a line for each page and return the exit code."""
    total = whats = 0
    wrong = []
    for page in [Path(name) for name in sys.argv[1:]] or pages():
        text = page.read_text()
        words = words_of(text)
        count = sum(word.lower() in ("what", "whatever") for word in words)
        total, whats = total + len(words), whats + count
        rate = 1000 * count / max(1, len(words))
        print(f"{page!s:42} {len(text.splitlines()):5} lines {len(words):6} words {rate:5.1f} what")
        wrong += [f"{page}: a fence of {line!r}" for line in odd_fences(text)]
    rate = 1000 * whats / max(1, total)
    print(f"{total} words, what {rate:.1f} times in 1,000")
    print("\n".join(wrong))
    return int(rate > MOST_WHAT or bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
