"""python -m tests.checks.file_calls: find calls that remove, replace or write files on their own.

All of them belong in and_dist/utils/owned_files.py and owned_folders.py, which keep the rule that
nothing is touched that the program did not write. Libraries that write files by themselves may be
called where they are handed a place by these modules: inside `with publish_files(...) as folder`,
`with open_new(...) as file` and the like, with that name in their arguments. The exceptions are
named below, each with its reason.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

OWNERS = ("and_dist/utils/owned_files.py", "and_dist/utils/owned_folders.py")
PLACES = {
    "open_new",
    "open_shared",
    "open_to_append",
    "publish_files",
    "publish_results",
    "scratch_folder",
    "memory_file",
}
"""Context managers of the owners that give a place to write to."""
REMOVES = {
    "rmtree",
    "unlink",
    "rmdir",
    "removedirs",
    "rename",
    "renames",
    "renameat2",
    "move",
    "copy2",
    "copyfile",
    "copytree",
    "symlink_to",
    "hardlink_to",
    "symlink",
    "link",
    "write_text",
    "write_bytes",
    "touch",
    "tofile",
    "mkstemp",
    "mkdtemp",
    "TemporaryDirectory",
    "NamedTemporaryFile",
    "TemporaryFile",
}
LIBRARIES = {
    "save",
    "savez",
    "savez_compressed",
    "savetxt",
    "save_file",
    "export",
    "export_chrome_trace",
    "memmap",
    "open_memmap",
    "HuggingFaceStorageWriter",
    "FileSystemWriter",
    "SummaryWriter",
    "RecordWriter",
    "to_csv",
    "savefig",
    "write_html",
}
EXCEPTIONS = {
    ("and_dist/utils/file_locks.py", "open"): "locks a file, and leaves its content alone",
    ("and_dist/data/cache.py", "memmap"): "maps a memory_file, which another rank may have made",
    ("and_dist/data/index.py", "memmap"): "maps for reading",
    ("and_dist/runs/tensorboard_file.py", "RecordWriter"): "writes into a file of open_to_append",
    ("and_dist/checkpoint/export.py", "save"): "saves to memory, which write_file takes",
    ("and_dist/data/encoded_images.py", "save"): "saves to memory, which DALI takes",
    (
        "and_dist/checkpoint/export.py",
        "export",
    ): "torch.onnx writes into the folder of publish_files",
    ("and_dist/data/encoded_images.py", "save"): "Pillow encodes into memory",
    ("and_dist/data/transcode.py", "save"): "Pillow encodes into memory",
    ("and_dist/report/thumbnails.py", "save"): "Pillow encodes into memory",
    ("launcher/local.py", "open"): "the null device",
}


class Found(NamedTuple):
    """One call that does not belong where it stands."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what} outside and_dist/utils/owned_files.py"


def find_calls(file: str, source: str) -> Iterator[Found]:
    """Find every call of a file that writes, replaces or removes on its own."""
    yield from _visit(ast.parse(source), file, frozenset())


def _visit(node: ast.AST, file: str, given: frozenset[str]) -> Iterator[Found]:
    """`given` are the names that the owners have bound around a node."""
    if isinstance(node, ast.With):
        given |= {name for item in node.items for name in _names_given(item)}
        for statement in ast.walk(node):  # outer statements first, which is enough for plain code
            if isinstance(statement, ast.Assign) and _uses(statement.value, given):
                given |= {name for target in statement.targets for name in _names_in(target)}
    if isinstance(node, ast.Call) and (what := _describe(node, file, given)):
        yield Found(file, node.lineno, what)
    for child in ast.iter_child_nodes(node):
        yield from _visit(child, file, given)


def _names_given(item: ast.withitem) -> list[str]:
    call = item.context_expr
    is_place = isinstance(call, ast.Call) and _name_of(call.func) in PLACES
    return _names_in(item.optional_vars) if is_place and item.optional_vars else []


def _names_in(expression: ast.expr) -> list[str]:
    return [node.id for node in ast.walk(expression) if isinstance(node, ast.Name)]


def _describe(call: ast.Call, file: str, given: frozenset[str]) -> str:
    """Say what a call does; "" for one that may stand here."""
    name = _name_of(call.func)
    if (file, name) in EXCEPTIONS:
        return ""
    if name in REMOVES:
        return f"{name}()"
    if name == "remove" and _module_of(call.func) == "os":
        return "os.remove()"
    if name == "replace" and _module_of(call.func) == "os":
        return "os.replace()"
    if name == "replace" and len(call.args) == 1 and not call.keywords:
        return "replace() of a path"
    if name == "open" and _is_for_writing(call):
        return "open() for writing"
    if name in LIBRARIES and not _is_given(call, given):
        return f"{name}() of a place that is not from owned_files"
    return ""


def _is_for_writing(call: ast.Call) -> bool:
    """Tell a call of open, Path.open or os.open that writes; a mode unknown here counts."""
    if _module_of(call.func) == "os":
        names = {
            n.attr
            for argument in call.args[1:]
            for n in ast.walk(argument)
            if isinstance(n, ast.Attribute)
        }
        return bool(names & {"O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND", "O_TRUNC"})
    is_method = isinstance(call.func, ast.Attribute)
    position = 0 if is_method else 1
    if is_method and _module_of(call.func) in ("Image", "tarfile", "gzip"):
        return False
    named = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    for mode in [*call.args[position : position + 1], *named]:
        known = mode.value if isinstance(mode, ast.Constant) else "w"
        if isinstance(known, str) and set(known) & set("wax+"):
            return True
    return False


def _is_given(call: ast.Call, given: frozenset[str]) -> bool:
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    return not arguments or any(_uses(argument, given) for argument in arguments)


def _uses(expression: ast.expr, names: frozenset[str]) -> bool:
    return not names.isdisjoint(_names_in(expression))


def _name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _module_of(function: ast.expr) -> str:
    value = getattr(function, "value", None)
    return value.id if isinstance(value, ast.Name) else ""


def main(root: Path = Path()) -> int:
    """Print what is found in and_dist and launcher; return the exit code."""
    files = [
        str(path.relative_to(root))
        for package in ("and_dist", "launcher")
        for path in sorted((root / package).rglob("*.py"))
    ]
    found = [
        call
        for file in files
        if file not in OWNERS
        for call in find_calls(file, (root / file).read_text())
    ]
    for call in found:
        print(call)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
