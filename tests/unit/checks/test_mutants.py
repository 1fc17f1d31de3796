"""Mutants are made at the places that change what a program does, and nowhere else."""

from __future__ import annotations

import pytest

from tests.mutants.__main__ import all_mutants, choose
from tests.mutants.maker import make_mutants
from tests.mutants.report import read_explanations
from tests.mutants.tables import LEFT_OUT, TESTS


def changed(source: str, *left_out: str) -> list[str]:
    """Each mutant's whole text."""
    content = source.encode()
    mutants = make_mutants("a.py", content, left_out.__contains__)
    return [mutant.apply(content).decode() for mutant in mutants]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = a < b", ["x = a <= b"]),
        ("x = a <= b < c", ["x = a < b < c", "x = a <= b <= c"]),
        ("x = a is not b", ["x = a is b"]),
        ("x = a  not  in b", ["x = a  in b"]),
        ("x = (a) == (b)", ["x = (a) != (b)"]),
        ("x = a + b", ["x = a - b"]),
        ("x = a // b", ["x = a * b"]),
        ("x = a ** b", ["x = a * b"]),
        ("x += y", ["x -= y"]),
        ("x //= y", ["x *= y"]),
        ("x = a and b and c", ["x = a or b and c", "x = a and b or c"]),
        ("x = not a", ["x =  a"]),
        ("x = -a", ["x = a"]),
        ("x = 7", ["x = 8"]),
        ("x = True", ["x = False"]),
        ("x = é(3)", ["x = é(4)"]),
        ("x = min(a, b)", ["x = max(a, b)"]),
        ("x = a.clamp(min=b)", ["x = a.clamp(max=b)"]),
        ("x.sort()", ["pass"]),
        ("x = a[b:]", ["x = a[(b) + 1:]", "x = a[b:-1]"]),
        ("x = a[:b]", ["x = a[1:b]", "x = a[:(b) - 1]"]),
        ("if a:\n    x = b", ["if not (a):\n    x = b"]),
        ("x = a if b else c", ["x = a if not (b) else c"]),
        ("x = [a for a in b if a]", ["x = [a for a in b if not (a)]"]),
        ("def f(a=None):\n    return a", ["def f(a=0):\n    return a", None]),
    ],
)
def test_every_kind_of_change_is_made(before: str, after: list[str | None]) -> None:
    last = before.replace("return a", "return None")
    assert changed(before) == [last if text is None else text for text in after]


@pytest.mark.parametrize(
    "source",
    [
        '"""Adds 1 < 2."""',
        "x: Literal[1, 2]",
        "def f(a: Literal[1]) -> Literal[2]: ...",
        "assert a < 1",
        'raise ValueError(f"{a + 1} is not {min(a, 2)}")',
        'x = f"{a + 1}"',
        "if TYPE_CHECKING:\n    f(1)",
        'x = "text" + a',
        "x = y @ z",
        "def f():\n    return None",
    ],
)
def test_what_is_no_code_of_the_program_stays(source: str) -> None:
    assert changed(source) == []


def test_functions_and_constants_are_left_out_by_name() -> None:
    source = "SIZE = 1\ndef f():\n    size = 2\ndef g():\n    self.size = 3\n"
    assert len(changed(source)) == 3
    assert changed(source, "SIZE", "f") == [source.replace("3", "4")]
    assert changed(source, "g.size", "f.size") == [source.replace("= 1", "= 2")]


def test_a_mutant_knows_its_line() -> None:
    source = b"\n\n    \nif x:\n    y = (\n        1)\n"
    (mutant,) = make_mutants("a.py", source, {"y"}.__contains__)
    assert str(mutant) == "a.py:4: if x:  ->  if not (x):"


def test_every_file_has_tests_and_its_share_of_a_sample() -> None:
    mutants = all_mutants()
    assert {mutant.file for mutant in mutants} <= TESTS.keys()
    assert LEFT_OUT.keys() <= TESTS.keys()
    chosen = choose(mutants, 200, 0)
    assert len(set(chosen)) == len(chosen) == pytest.approx(200, abs=len(TESTS) / 2)
    assert choose(mutants, 200, 0) == chosen != choose(mutants, 200, 1)
    for file in TESTS:
        possible, taken = (sum(m.file == file for m in some) for some in (mutants, chosen))
        assert abs(taken - 200 * possible / len(mutants)) <= 1


def test_explanations_are_of_lines_that_are_there() -> None:
    places = {mutant.name for mutant in all_mutants()}
    assert read_explanations().keys() <= places
