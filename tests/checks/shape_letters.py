"""Find shape letters that nobody declares: run `python -m tests.checks.shape_letters`.

A name such as features_BD carries its shape. Its letters are those of the project's alphabet
(docs/architecture.md), or the module's docstring declares them, as in "X any rows".
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("and_dist", "launcher", "benchmarks")
ARCHITECTURE = Path("docs/architecture.md")
SHAPED = re.compile(r"_*[a-z][a-z0-9_]*_([A-Z][A-Z0-9]*)")
IMAGES = ("CHW", "HWC", "HW")
"""Channels, height and width of images, as everywhere."""


def read_alphabet(text: str) -> set[str]:
    """Return the letters of the table of shape letters."""
    _, _, section = text.partition("## Shape letters")
    rows = re.findall(r"^\| ([A-Z]) \|[^|]*\| ([A-Z]) \|", section, re.MULTILINE)
    return {letter for row in rows for letter in row}


def declared_letters(docstring: str) -> set[str]:
    """Return the letters that a module's docstring declares: a capital and what it counts."""
    return set(re.findall(r"\b([A-Z])(?= (?:= |[a-z]))", docstring))


def shaped_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of everything that a module binds, with a shape in its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def find_undeclared(source: str, alphabet: set[str]) -> list[tuple[int, str, str]]:
    """Return (line, name, letters) of names whose letters are nowhere declared."""
    tree = ast.parse(source)
    known = alphabet | declared_letters(ast.get_docstring(tree) or "")
    found = []
    for line, name in shaped_names(tree):
        if shape := SHAPED.fullmatch(name):
            letters = re.sub("|".join(IMAGES), "", shape[1])
            unknown = "".join(c for c in letters if c.isalpha() and c not in known)
            if unknown:
                found.append((line, name, unknown))
    return sorted(set(found))


def main() -> int:
    """Print what is undeclared; return 1 if anything is."""
    alphabet = read_alphabet(ARCHITECTURE.read_text())
    lines = [
        f"{path}:{line}: {name} has letters that nobody declares: {', '.join(letters)}"
        for package in PACKAGES
        for path in sorted(Path(package).rglob("*.py"))
        for line, name, letters in find_undeclared(path.read_text(), alphabet)
    ]
    print("\n".join(lines) or "all shape letters are declared")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
