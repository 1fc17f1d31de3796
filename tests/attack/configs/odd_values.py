"""Odd values of a key as YAML, and files of odd structure."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from and_dist.config.schema import Config

UNKNOWN: Any = object()
"""The value of a YAML text where it is not stated here."""

NUMBERS: dict[str, Any] = {
    "0": 0,
    "1": 1,
    "2": 2,
    "3": 3,
    "-1": -1,
    "0.5": 0.5,
    "1.0": 1.0,
    "-0.0": 0.0,
    "16": 16,
    "4096": 4096,
    "1000000": 10**6,
    "1_000_000_000": 10**9,
    "1000000000000": 10**12,
    "1e9": 1e9,
    "1e15": 1e15,
    "1e30": 1e30,
    "1e300": 1e300,
    "1e-9": 1e-9,
    "1e-45": 1e-45,
    "5e-324": 5e-324,
    "2147483647": 2**31 - 1,
    "2147483648": 2**31,
    "9223372036854775807": 2**63 - 1,
    "9223372036854775808": 2**63,
    "18446744073709551616": 2**64,
    "9" * 30: int("9" * 30),
    "9" * 400: int("9" * 400),
    "-" + "9" * 30: -int("9" * 30),
}
NOT_FINITE = (".nan", ".inf", "-.inf", ".NaN", "1e309", "-1e309", "1.8e308", "9" * 400 + ".0")
TEXTS: dict[str, Any] = {
    "''": "",
    "' '": " ",
    "true": True,
    "off": False,
    "null": None,
    "~": None,
    "''''": "'",
    "abc": "abc",
    "a" * 300: "a" * 300,
    "a" * 5000: "a" * 5000,
    "ü": "ü",
    "日本": "日本",
    "../../x": "../../x",
    "/": "/",
    "/dev/zero": "/dev/zero",
    "shapes/train": "shapes/train",
    "cudnn": "cudnn",
    "[]": [],
    "[1]": [1],
    "[1, 2, 3]": [1, 2, 3],
    "[0.5, 0.5, 0.5]": [0.5, 0.5, 0.5],
    "[1, 2, 3000000000]": [1, 2, 3_000_000_000],
    "[1e-300, 1, 1]": UNKNOWN,
    "[0, 0]": [0, 0],
    "[1e-300, 1]": UNKNOWN,
    "[.nan, 1]": UNKNOWN,
    "[.nan, .nan, .nan]": UNKNOWN,
    "{}": UNKNOWN,
    "{a: 1}": UNKNOWN,
    "{a: {b: {c: {}}}}": UNKNOWN,
    "2001-01-01": UNKNOWN,
    "2001-99-99": UNKNOWN,
    "2001-01-01T01:01:01.5+05:00": UNKNOWN,
    "1:30:00": UNKNOWN,
    "190:20:30.15": UNKNOWN,
    "2d12h": UNKNOWN,
    "999999999d": UNKNOWN,
    "9" * 30 + "d": UNKNOWN,
    "9999999999-23:59:59": UNKNOWN,
    "9" * 5000: UNKNOWN,
    "9" * 5000 + "m": UNKNOWN,
    "0x" + "f" * 100: UNKNOWN,
    "0x" + "f" * 50_000: UNKNOWN,
    "0b" + "1" * 20_000: UNKNOWN,
    "0x_": UNKNOWN,
    "0_": UNKNOWN,
    "0" * 60: UNKNOWN,
    "\\": UNKNOWN,
    '"\\0"': UNKNOWN,
    '"a\\0b"': UNKNOWN,
    '"\\ud800"': UNKNOWN,
    '"\\x1b[31mred"': UNKNOWN,
    '"a\\nb"': UNKNOWN,
    '"\\u202egpj"': UNKNOWN,
    '"\\U0010ffff"': UNKNOWN,
    '"\\U00110000"': UNKNOWN,
    '"\\q"': UNKNOWN,
    "!!int ''": UNKNOWN,
    "!!int abc": UNKNOWN,
    "!!int 1e3": UNKNOWN,
    "!!int [1]": UNKNOWN,
    "!!float ''": UNKNOWN,
    "!!float '-'": UNKNOWN,
    "!!float 5": UNKNOWN,
    "!!float 'nan'": UNKNOWN,
    "!!bool maybe": UNKNOWN,
    "!!bool ''": UNKNOWN,
    "!!null some": UNKNOWN,
    "!!timestamp soon": UNKNOWN,
    "!!timestamp ''": UNKNOWN,
    "!!binary '=='": UNKNOWN,
    "!!binary /w==": UNKNOWN,
    "!!binary ü": UNKNOWN,
    "!!set {a, b}": UNKNOWN,
    "!!set [a]": UNKNOWN,
    "!!omap [a: 1]": UNKNOWN,
    "!!omap [a]": UNKNOWN,
    "!!pairs [a: 1]": UNKNOWN,
    "!!pairs [[a: 1]]": UNKNOWN,
    "!!str [a]": UNKNOWN,
    "!!map x": UNKNOWN,
    "!!seq x": UNKNOWN,
    "!!merge x": UNKNOWN,
    "!!value x": UNKNOWN,
    "!!python/name:os.system": UNKNOWN,
    "!!python/object/apply:os.system [ls]": UNKNOWN,
    "!local x": UNKNOWN,
    "!<tag:yaml.org,2002:int> x": UNKNOWN,
    "! 5": UNKNOWN,
    "=": UNKNOWN,
    "<<": UNKNOWN,
    "*a": UNKNOWN,
    "&a [*a]": UNKNOWN,
    "&a {b: *a}": UNKNOWN,
    "&a {<<: *a}": UNKNOWN,
    "{<<: 3}": UNKNOWN,
    "{<<: [3]}": UNKNOWN,
    "{? [a] : b}": UNKNOWN,
    "{? {a: b} : c}": UNKNOWN,
    "{1: 2}": UNKNOWN,
    "{.nan: 1, .inf: 2}": UNKNOWN,
    "{null: 1}": UNKNOWN,
    "{2001-01-01: 1}": UNKNOWN,
    "{!!binary aaaa: 1}": UNKNOWN,
    "[{1: 2}]": UNKNOWN,
    "x: y": UNKNOWN,
    "- a": UNKNOWN,
    '"': UNKNOWN,
    "%YAML 9.9": UNKNOWN,
    "%TAG ! !": UNKNOWN,
    "--- a\n--- b": UNKNOWN,
    "@": UNKNOWN,
    "`": UNKNOWN,
    "| ": UNKNOWN,
    ">99": UNKNOWN,
    "\ta": UNKNOWN,
    "#": UNKNOWN,
    "?": UNKNOWN,
    "[" * 3000: UNKNOWN,
    "[" * 400 + "]" * 400: UNKNOWN,
    "{a: " * 300 + "1" + "}" * 300: UNKNOWN,
    "- " * 3000: UNKNOWN,
    "? " * 3000: UNKNOWN,
    "[" + "1," * 30_000 + "]": UNKNOWN,
    "[" + "a," * 30_000 + "]": UNKNOWN,
}
DURATIONS = ("run.time_limit", "run.stall_seconds", "run.save_minutes")


def leaf_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Yield every key of a config, with dots."""
    for name, one in section.model_fields.items():
        kind = one.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaf_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


KEYS = tuple(leaf_keys())
SECTIONS = tuple(dict.fromkeys(key.rpartition(".")[0] for key in KEYS if "." in key))


def odd_value(chance: random.Random) -> tuple[str, Any, bool]:
    """Return YAML, its value where that is known, and whether it is no finite number."""
    which = chance.random()
    if which < 0.35:
        text = chance.choice(list(NUMBERS))
        return text, NUMBERS[text], False
    if which < 0.5:
        return chance.choice(NOT_FINITE), UNKNOWN, True
    if which < 0.6:
        number = chance.choice((-1, 1)) * 10 ** chance.uniform(-40, 40)
        if chance.random() < 0.5 and abs(number) >= 1:
            return str(int(number)), int(number), False
        return repr(number), number, False
    text = chance.choice(list(TEXTS))
    return text, TEXTS[text], False


def bomb(depth: int, width: int, leaf: str) -> str:
    """Return lines of which each repeats the one above."""
    lines = [f"a0: &a0 {leaf}"]
    for at in range(1, depth):
        lines.append(f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * width)}]")
    return "\n".join(lines)


def merge_bomb(depth: int, width: int) -> str:
    """Return lines of which each merges the one above, again and again."""
    lines = ["a0: &a0 {x: 1, y: 2, z: 3}"]
    for at in range(1, depth):
        lines.append(f"a{at}: &a{at} {{<<: [{', '.join([f'*a{at - 1}'] * width)}]}}")
    return "\n".join(lines)


def inline_bomb(depth: int, width: int, leaf: str) -> str:
    """Return a list in one line, each part of which repeats the one before."""
    parts = [f"&a0 {leaf}"]
    for at in range(1, depth):
        parts.append(f"&a{at} [{', '.join([f'*a{at - 1}'] * width)}]")
    return f"[{', '.join(parts)}]"


def structures(chance: random.Random) -> str:
    """Return the text of a file of odd structure."""
    many = chance.choice((10, 1000, 30_000))
    long = chance.choice((1000, 60_000, 900_000, 1_100_000))
    key = chance.choice(KEYS)
    section, _, last = key.rpartition(".")
    leaf = chance.choice(("x", "[x, y]", "'" + "x" * long + "'", "{a: 1}", "1"))
    forms = (
        lambda: bomb(chance.choice((3, 6, 9, 30)), chance.choice((2, 9, 50)), leaf),
        lambda: merge_bomb(chance.choice((3, 9, 30)), chance.choice((2, 9, 50))),
        lambda: f"{section or 'data'}:\n" + "".join(f"  k{at}: {at}\n" for at in range(many)),
        lambda: "".join(f"k{at}: {at}\n" for at in range(many)),
        lambda: f"{section or 'data'}:\n" + f"  {last}: 1\n" * many,
        lambda: "".join(f"{'k' * min(long, 2000)}{at}: 1\n" for at in range(min(many, 400))),
        lambda: f"{'k' * long}: 1",
        lambda: f"? {'k' * long}\n: 1",
        lambda: f"{section or 'data'}: {{{last}: {'[' * many}}}",
        lambda: f"{section or 'data'}: {{{last}: '{'x' * long}'}}",
        lambda: f"{section or 'data'}: {{{last}: 0x{'f' * long}}}",
        lambda: f"{section or 'data'}: {{{last}: {'9' * long}}}",
        lambda: f"{section or 'data'}: {{{last}: [{'1, ' * many}]}}",
        lambda: f"{section or 'data'}: {{{last}: [{'{}, ' * many}]}}",
        lambda: "paper: [" + ", ".join(f"p{at}" for at in range(many)) + "]",
        lambda: "# " + "x" * long,
        lambda: "\n" * long,
        lambda: "a: " + " " * long + "1",
        lambda: "---\n" * many,
        lambda: "- " * many,
        lambda: "? " * many,
        lambda: "".join(f"{' ' * at}a:\n" for at in range(min(many, 900))),
        lambda: "%YAML 1.1\n" * many,
        lambda: "".join(f"- &a{at} x\n" for at in range(many)),
        lambda: "{" * many,
        lambda: f"name: {'&a ' * many}x",
        lambda: f"name: {'!!str ' * many}x",
        lambda: "name: |\n" + "  x\n" * many,
        lambda: "name: x" + "\n  x" * many,
        lambda: f"method: {'a' * long}",
        lambda: f"encoder: {{name: {'resnet' * (long // 6)}}}",
        lambda: "base: [" + "x, " * many + "]",
    )
    return chance.choice(forms)()
