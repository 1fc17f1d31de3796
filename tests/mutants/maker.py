"""Make mutants of a module: its text with one operator, number, condition or call changed.

The `ast` module finds the places; the text between them stays as it is, to the byte.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

COMPARES = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: (r"is\s+not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: (r"not\s+in", "in"),
}
ARITHMETIC = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.BitOr: ("|", "&"),
    ast.BitAnd: ("&", "|"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
}
SIGNS = {ast.Not: ("not", ""), ast.USub: ("-", ""), ast.Invert: ("~", "")}
SWAPPED_NAMES = {
    "min": "max",
    "max": "min",
    "minimum": "maximum",
    "maximum": "minimum",
    "amin": "amax",
    "amax": "amin",
    "argmin": "argmax",
    "argmax": "argmin",
    "any": "all",
    "all": "any",
    "floor": "ceil",
    "ceil": "floor",
}
MOST_LINES = 12
"""The most lines of a function whose `return` is made to return None."""


class Change(NamedTuple):
    """The bytes [start, stop) of a source, and what takes their place."""

    start: int
    stop: int
    text: str


class Mutant(NamedTuple):
    """One change of one file."""

    file: str
    line: int
    change: Change
    before: str
    """The line of the source, without its indent."""
    after: str
    """The same line with the change; the first of them where the change spans several."""

    @property
    def name(self) -> tuple[str, str, str]:
        """Return a name that stays when lines above the mutant come and go."""
        return self.file, self.before, self.after

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before}  ->  {self.after}"

    def apply(self, source: bytes) -> bytes:
        """The source with the change made."""
        return source[: self.change.start] + self.change.text.encode() + source[self.change.stop :]


class Source:
    """A module's text, and the places of its nodes in bytes."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        lines = content.splitlines(keepends=True)
        self._line_starts = [0]
        for line in lines:
            self._line_starts.append(self._line_starts[-1] + len(line))

    def start(self, node: ast.expr | ast.stmt | ast.keyword) -> int:
        return self._line_starts[node.lineno - 1] + node.col_offset

    def stop(self, node: ast.expr | ast.stmt | ast.keyword) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._line_starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.expr | ast.stmt) -> str:
        return self.content[self.start(node) : self.stop(node)].decode()

    def line_of(self, offset: int) -> int:
        return self.content.count(b"\n", 0, offset) + 1

    def replace(self, node: ast.expr | ast.stmt, text: str) -> Change:
        return Change(self.start(node), self.stop(node), text)

    def swap(self, start: int, stop: int, pattern: str, text: str) -> Iterator[Change]:
        """Replace the first match of a pattern between two places."""
        found = re.search(pattern.encode(), self.content[start:stop])
        if found:
            yield Change(start + found.start(), start + found.end(), text)


Leave = Callable[[str], bool]
"""Says whether a name is left out: of a function, of a constant, or FUNCTION.VARIABLE."""


def make_mutants(file: str, content: bytes, leaves_out: Leave) -> list[Mutant]:
    """All mutants of a module, in the order of their places."""
    source = Source(content)
    changes = set(_visit(ast.parse(content), source, "", leaves_out))
    return [_name(file, source, change) for change in sorted(changes)]


def _name(file: str, source: Source, change: Change) -> Mutant:
    content = source.content
    begin = content.rfind(b"\n", 0, change.start) + 1
    before = content[begin:].split(b"\n", 1)[0]
    rest = content[change.stop :].split(b"\n", 1)[0]
    after = (content[begin : change.start] + change.text.encode() + rest).split(b"\n", 1)[0]
    line = source.line_of(change.start)
    return Mutant(file, line, change, before.decode().strip(), after.decode().strip())


def _visit(node: ast.AST, source: Source, function: str, leaves_out: Leave) -> Iterator[Change]:
    """The changes of a node and of those below it, but for what is no code of the program."""
    if isinstance(node, ast.Assert | ast.Raise | ast.JoinedStr) or _is_left_out(
        node, function, leaves_out
    ):
        return
    if isinstance(node, ast.FunctionDef):
        function = node.name
    for kind, changes in CHANGES.items():
        if isinstance(node, kind):
            yield from changes(node, source)
    annotations = [getattr(node, field, None) for field in ("annotation", "returns")]
    for child in ast.iter_child_nodes(node):
        if child not in annotations:
            yield from _visit(child, source, function, leaves_out)


def _is_left_out(node: ast.AST, function: str, leaves_out: Leave) -> bool:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return leaves_out(node.name)
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.dump(node.test)
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        prefix = f"{function}." if function else ""
        return any(leaves_out(prefix + name) for target in targets for name in _names(target))
    return False


def _names(target: ast.expr) -> Iterator[str]:
    for node in ast.walk(target):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def _change_compare(node: ast.Compare, source: Source) -> Iterator[Change]:
    operands = [node.left, *node.comparators]
    for operator, left, right in zip(node.ops, operands, operands[1:], strict=False):
        pattern, text = COMPARES[type(operator)]
        yield from source.swap(source.stop(left), source.start(right), pattern, text)


def _change_arithmetic(node: ast.BinOp, source: Source) -> Iterator[Change]:
    if type(node.op) in ARITHMETIC and not {_kind(node.left), _kind(node.right)} & {"text"}:
        old, new = ARITHMETIC[type(node.op)]
        yield from source.swap(
            source.stop(node.left), source.start(node.right), re.escape(old), new
        )


def _kind(node: ast.expr) -> str:
    is_text = isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return "text" if is_text else ""


def _change_augmented(node: ast.AugAssign, source: Source) -> Iterator[Change]:
    old, new = ARITHMETIC[type(node.op)]
    yield from source.swap(
        source.stop(node.target), source.start(node.value), re.escape(old + "="), new + "="
    )


def _change_and_or(node: ast.BoolOp, source: Source) -> Iterator[Change]:
    old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
    for left, right in zip(node.values, node.values[1:], strict=False):
        yield from source.swap(source.stop(left), source.start(right), rf"\b{old}\b", new)


def _change_sign(node: ast.UnaryOp, source: Source) -> Iterator[Change]:
    if type(node.op) in SIGNS:
        old, new = SIGNS[type(node.op)]
        yield from source.swap(source.start(node), source.stop(node), old, new)


def _change_constant(node: ast.Constant, source: Source) -> Iterator[Change]:
    if isinstance(node.value, bool):
        yield source.replace(node, str(not node.value))
    elif isinstance(node.value, int):
        yield source.replace(node, str(node.value + 1))


def _change_call(node: ast.Call, source: Source) -> Iterator[Change]:
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    if name in SWAPPED_NAMES:
        stop = source.stop(node.func)
        yield Change(stop - len(name), stop, SWAPPED_NAMES[name])
    for keyword in node.keywords:
        if keyword.arg in ("min", "max"):
            start = source.start(keyword)
            yield Change(start, start + len(keyword.arg), SWAPPED_NAMES[keyword.arg])


def _remove_call(node: ast.Expr, source: Source) -> Iterator[Change]:
    if isinstance(node.value, ast.Call):
        yield source.replace(node, "pass")


def _change_slice(node: ast.Slice, source: Source) -> Iterator[Change]:
    start, stop = source.start(node), source.stop(node)
    if node.lower is None:
        yield Change(start, start, "1")
    elif not isinstance(node.lower, ast.Constant):
        yield source.replace(node.lower, f"({source.text(node.lower)}) + 1")
    if node.upper is not None and not isinstance(node.upper, ast.Constant):
        yield source.replace(node.upper, f"({source.text(node.upper)}) - 1")
    elif node.upper is None and node.step is None:
        yield Change(stop, stop, "-1")


def _negate_condition(
    node: ast.If | ast.IfExp | ast.While | ast.comprehension, source: Source
) -> Iterator[Change]:
    tests = node.ifs if isinstance(node, ast.comprehension) else [node.test]
    for test in tests:
        if not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)):
            yield source.replace(test, f"not ({source.text(test)})")


def _change_function(node: ast.FunctionDef, source: Source) -> Iterator[Change]:
    """Make it return None, where it is small; make a default of None be 0."""
    for default in [*node.args.defaults, *node.args.kw_defaults]:
        if isinstance(default, ast.Constant) and default.value is None:
            yield source.replace(default, "0")
    assert node.end_lineno is not None
    if node.end_lineno - node.body[0].lineno >= MOST_LINES:
        return
    for inner in ast.walk(node):
        if isinstance(inner, ast.Return) and not _is_plain(inner.value):
            assert inner.value is not None
            yield source.replace(inner.value, "None")


def _is_plain(value: ast.expr | None) -> bool:
    """None, True and False are changed elsewhere."""
    return value is None or (isinstance(value, ast.Constant) and value.value in (None, True, False))


CHANGES: dict[type | tuple[type, ...], Callable[..., Iterator[Change]]] = {
    ast.Compare: _change_compare,
    ast.BinOp: _change_arithmetic,
    ast.AugAssign: _change_augmented,
    ast.BoolOp: _change_and_or,
    ast.UnaryOp: _change_sign,
    ast.Constant: _change_constant,
    ast.Call: _change_call,
    ast.Expr: _remove_call,
    ast.Slice: _change_slice,
    (ast.If, ast.IfExp, ast.While, ast.comprehension): _negate_condition,
    ast.FunctionDef: _change_function,
}
