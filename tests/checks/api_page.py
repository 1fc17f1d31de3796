"""Write docs/api.md from the docstrings of the public names, or compare it with them.

python -m tests.checks.api_page            compare, as `make check` does
python -m tests.checks.api_page --write    write, as `make api` does
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import and_dist

PAGE = Path("docs/api.md")
SECTIONS = {
    "Runs": ("load_config", "train", "load", "load_encoder"),
    "The method": (
        "open_world",
        "shard_range",
        "MemoryBank",
        "log_partition",
        "merge",
        "neighbourhood_nll",
        "num_anchors",
        "discover",
    ),
}
"""Headings -> public names in the order of the page."""
CLASSES = {
    "LoadedRun": "and_dist.evaluation.loaded_run",
    "Neighbour": "and_dist.evaluation.neighbour_query",
    "Partition": "and_dist.method.partition_merge",
    "Neighbourhoods": "and_dist.method.neighbour_table",
    "World": "and_dist.distributed.world",
}
"""Classes that the functions return -> the modules that define them."""
OPENING = """# The public API

Other programs may rely on these names of `and_dist`. They are loaded when they are first used:
`import and_dist` alone loads no torch. Shapes are in the names of tensors, as in `features_BD`
([the letters](architecture.md#shape-letters)). The page is made from the docstrings by `make api`.
Each example runs as a test, in a folder with the run `runs/demo` and an image `mine.jpg`.
"""


def render() -> str:
    """Return the page."""
    parts = [OPENING]
    for heading, names in SECTIONS.items():
        parts.append(f"## {heading}\n")
        parts += [describe(f"and_dist.{name}", getattr(and_dist, name)) for name in names]
    parts.append("## Returned classes\n")
    for name, module in CLASSES.items():
        parts.append(describe(name, getattr(importlib.import_module(module), name)))
    return "\n".join(parts)


def describe(name: str, thing: Any) -> str:
    """Return the heading, signature, text and example of a function or class."""
    lines = [f"### {name}\n", *_signature(name, thing), _as_markdown(inspect.getdoc(thing) or "")]
    if inspect.isclass(thing):
        lines += _members(thing)
    return "\n".join(lines)


def _signature(name: str, thing: Any) -> list[str]:
    """Return a fence with the call, one parameter a line where it is long."""
    if inspect.isclass(thing) and not name.startswith("and_dist."):
        return []  # others make it, not the reader
    signature = inspect.signature(thing)
    shown = _parameters(signature)
    returned = "" if inspect.isclass(thing) else f" -> {signature.return_annotation}"
    returned = re.sub(r"Iterator\[(\w+)\]", r"context manager of \1", returned)
    call = f"{name}({', '.join(shown)}){returned}"
    if len(call) > 100:
        inner = "".join(f"    {one},\n" for one in shown)
        call = f"{name}(\n{inner}){returned}"
    return [f"```text\n{call}\n```\n"]


def _parameters(signature: inspect.Signature) -> list[str]:
    """Return the parameters of a call as they stand in the source."""
    shown = []
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        default = "" if parameter.default is parameter.empty else f" = {_shown(parameter.default)}"
        shown.append(f"{stars}{parameter.name}: {parameter.annotation}{default}")
    return shown


def _shown(value: Any) -> str:
    """Return a default value as somebody would write it."""
    if callable(value):
        return str(value.__name__)
    return repr(value).removeprefix("datetime.")


def _as_markdown(text: str) -> str:
    """Return a docstring as Markdown: arguments as a list, the example as a fence."""
    parts = re.split(r"^(Args|Returns|Example):$", text, flags=re.MULTILINE)
    shown = [parts[0].strip() + "\n"]
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        body = textwrap.dedent(body).strip("\n")
        if heading == "Example":
            shown.append(f"```python\n{body.rstrip()}\n```\n")
        elif heading == "Args":
            items = re.split(r"^(\w+): ", body, flags=re.MULTILINE)[1:]
            pairs = zip(items[::2], items[1::2], strict=True)
            shown.append("".join(f"- `{n}`: {' '.join(what.split())}\n" for n, what in pairs))
        else:
            shown.append(f"Returns: {' '.join(body.split())}\n")
    return "\n".join(shown)


def _members(thing: type) -> list[str]:
    """Return a list of what a class has, each with the first sentence of its docstring."""
    lines = []
    fields = _fields(thing)
    for name, value in vars(thing).items():
        if name.startswith("_") or name in fields:
            continue
        text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
        if not text:
            continue
        call = ""
        if inspect.isfunction(value):
            call = f"({', '.join(_parameters(inspect.signature(value)))})"
        lines.append(f"- `.{name}{call}`: {text}")
    lines += [f"- `.{name}`: {text}" for name, text in fields.items()]
    return [*lines, ""] if lines else []


def _fields(thing: type) -> dict[str, str]:
    """Return type and docstring of the fields of a class, and of the attributes it sets."""
    source = inspect.getsource(thing)
    pattern = r'^    (?:    self\.)?(\w+): ([^\n=]+?)(?: = [^\n]+)?\n(?: +"""(.+?)""")?'
    found = re.findall(pattern, source, flags=re.MULTILINE | re.DOTALL)
    return {
        name: f"`{kind.strip()}`. {' '.join(text.split())}".rstrip(". ") + "."
        for name, kind, text in found
        if name not in ("Example", "Args", "Returns") and not name.startswith("_")
    }


def main() -> int:
    """Write or compare the page, and return the exit code."""
    assert sorted(sum(SECTIONS.values(), ())) == and_dist.__all__, "a public name has no section"
    page = render()
    if "--write" in sys.argv:
        PAGE.write_text(page)
        return 0
    if not PAGE.exists() or PAGE.read_text() != page:
        print(f"{PAGE} is not what the docstrings say: run `make api`")
        return 1
    print(f"{PAGE} is what the docstrings say")
    return 0


if __name__ == "__main__":
    sys.exit(main())
