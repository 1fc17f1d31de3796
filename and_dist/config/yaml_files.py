"""Read and merge YAML as plain data: config files and `key=value` overrides. No torch."""

from __future__ import annotations

import copy
import os
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from and_dist.config.validation import clip
from and_dist.utils.formatting import as_text
from and_dist.utils.plain_files import read_at_most

MOST_BYTES = 1_000_000
"""The most bytes of a YAML file, with those of its bases."""
MOST_FILES = 50
"""The most files that one stands on by `base`."""
MOST_SIZE, SIZE_OF_A_VALUE = 600_000, 20
"""The most letters of all values in a YAML text, with those that it repeats by aliases, and the
letters that a value counts for beside its own."""
MOST_DEPTH = 50
"""The most lists and sections within each other."""
LONGEST_REASON = 400
"""The letters that a message shows of what PyYAML says, and of a path."""
LONGEST_NUMBER = 100
"""The most letters of a number: more digits than any has are costly to read and to write."""


def read_yaml(path: Path, may_be_link: bool = True) -> dict[str, Any]:
    """Return the mapping in a YAML file; raise ValueError if it is none or cannot be read.

    It has to be a regular file, and with `may_be_link` False no link to one either, as in a folder
    of somebody else's.
    """
    return _parse(_read_text(path, may_be_link), path)


def _read_text(path: Path, may_be_link: bool = True) -> str:
    """Return the text of a YAML file; raise ValueError if it cannot be read."""
    shown = as_text(clip(str(path), LONGEST_REASON))
    try:
        return read_at_most(path, MOST_BYTES, may_be_link).decode("utf-8")
    except OSError as error:
        raise ValueError(f"cannot read config {shown}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"config {shown} is not UTF-8 text: {error}") from None
    except ValueError as error:  # a zero character in its name
        raise ValueError(f"cannot read config {shown}: {error}") from None


def _parse(text: str, path: Path) -> dict[str, Any]:
    """Return the mapping in the text of a YAML file; raise ValueError if it is none."""
    try:
        values = yaml.load(text, Loader=ConfigLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"config {path} is not plain YAML: {_in_one_line(error)}") from None
    return as_mapping(values, f"config {path}")


class Layer(NamedTuple):
    """Holds the values of one YAML file."""

    file: Path
    values: dict[str, Any]


def read_layers(path: Path) -> list[Layer]:
    """Return a YAML file as the last of its layers, after those of the files that its `base` names.

    They lie beside it, and are named from left to right. Raise ValueError if a file is its own
    base, or stands on too many or too large ones.
    """
    lengths: list[int] = []

    def read(file: Path, above: tuple[str, ...]) -> list[Layer]:
        text, real = _read_text(file), os.path.realpath(file)
        if real in above:
            raise ValueError(f"config {file} is its own base")
        lengths.append(len(text))
        if len(lengths) > MOST_FILES or sum(lengths) > MOST_BYTES:
            raise ValueError(
                f"config {path} stands by its base on more than {MOST_FILES} files, or more than "
                f"{MOST_BYTES / 1e6:g} MB of them"
            )
        values = _parse(text, file)
        below = [read(file.parent / name, (*above, real)) for name in _bases(values, file)]
        return [*(layer for layers in below for layer in layers), Layer(file, values)]

    return read(path, ())


def _bases(values: dict[str, Any], path: Path) -> list[str]:
    """Take the names of its bases out of a file's values, and return them."""
    named = values.pop("base", [])
    bases = [named] if isinstance(named, str) else named
    if not isinstance(bases, list) or not all(isinstance(name, str) for name in bases):
        shown = clip(repr(named))
        raise ValueError(f"config {path}: base = {shown} is not the name of a file, or a list")
    return bases


def parse_override(text: str) -> dict[str, Any]:
    """Return `optim.lr=0.1` as {"optim": {"lr": 0.1}}; raise ValueError for another form."""
    key, equals, value = text.partition("=")
    parts, shown = key.split("."), clip(repr(text))
    if not equals or not all(parts) or len(parts) > MOST_DEPTH:
        raise ValueError(f"override {shown} is not of the form key=value, such as optim.lr=0.06")
    try:
        parsed = yaml.load(value, Loader=ConfigLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"override {shown}: {_in_one_line(error)}") from None
    for part in reversed(parts):
        parsed = {part: parsed}
    return typing.cast(dict[str, Any], parsed)


def _in_one_line(error: Exception) -> str:
    """Return what is wrong with a YAML text in one line."""
    return clip(" ".join(str(error).split()), LONGEST_REASON)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over` in it; mappings are merged key by key."""
    merged = copy.copy(dict(base))
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = merge(old, value)
        merged[key] = value
    return merged


def as_mapping(values: Any, where: str) -> dict[str, Any]:
    """Return values that are a mapping, or none; raise ValueError if they are something else."""
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{where} is not a mapping of keys to values")
    return values


class ConfigLoader(yaml.SafeLoader):
    """Load plain data only, refuse repeated keys, and read 1e-3 as a number and 1:30:00 as text.

    What a text says is measured while it is read, and before any alias is written out: ten lines
    can stand for more than a machine can hold.
    """

    def __init__(self, stream: str) -> None:
        """Begin to read a text."""
        super().__init__(stream)
        self._size, self._depth = 0, 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next value; raise YAMLError where there is too much, or too deep."""
        is_alias, before = self.check_event(yaml.AliasEvent), self._size
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise yaml.YAMLError(f"it goes deeper than {MOST_DEPTH} lists and sections")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias:
            if id(node) not in self._sizes:
                raise yaml.YAMLError("an alias stands within what it repeats")
            self._size += self._sizes[id(node)]
        else:
            letters = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
            self._size += SIZE_OF_A_VALUE + letters
            self._sizes[id(node)] = self._size - before
        if self._size > MOST_SIZE:
            raise yaml.YAMLError("it says too much, with what it repeats by aliases")
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """Return a scalar; raise YAMLError where its text is none of its type, as in !!int x."""
        node = super().compose_scalar_node(anchor)
        loader: Any = self  # its stubs lack a type for resolve()
        if node.tag not in CHECKED_TAGS:
            return node
        written = loader.resolve(yaml.ScalarNode, node.value, (True, False))
        if written != node.tag and (written, node.tag) != (INT, FLOAT):
            raise yaml.YAMLError(
                f"{clip(repr(node.value))} is no {node.tag.removeprefix(TAG)}{node.start_mark}"
            )
        if len(node.value) > LONGEST_NUMBER:
            raise yaml.YAMLError(f"a number of {len(node.value):,} letters{node.start_mark}")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping; raise YAMLError if a key is repeated or no text."""
        known: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.YAMLError(f"key {clip(repr(key))} is not text{key_node.start_mark}")
            if key in known:
                raise yaml.YAMLError(f"key {clip(repr(key))} stands twice{node.start_mark}")
            known.add(key)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """Return the text of a scalar; raise YAMLError for half a letter, such as \\ud800."""
        text = super().construct_scalar(node)
        if SURROGATE.search(str(text)):
            raise yaml.YAMLError(f"{clip(ascii(text))} is no text{node.start_mark}")
        return text


TAG = "tag:yaml.org,2002:"
INT, FLOAT = f"{TAG}int", f"{TAG}float"
CHECKED_TAGS = (INT, FLOAT, f"{TAG}bool", f"{TAG}null")
"""Types of scalars that PyYAML reads without looking at what is written."""
PLAIN_TAGS = (None, *CHECKED_TAGS, *(f"{TAG}{name}" for name in ("str", "seq", "map")))
"""Types that JSON has too, and None for the refusal of all others."""
SURROGATE = re.compile("[\ud800-\udfff]")


def keep_plain_types() -> None:
    """Make ConfigLoader refuse dates, sets, bytes and the like, and read dates as text."""
    known = yaml.SafeLoader.yaml_constructors
    ConfigLoader.yaml_constructors = {tag: known[tag] for tag in PLAIN_TAGS}


def add_number_resolvers() -> None:
    """Make ConfigLoader read 1e-3 as a number and 1:30:00 as text.

    YAML 1.1 takes 1e-3 for text, and 1:30:00 for a number to base 60, which is a duration here.
    """
    ConfigLoader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag not in (INT, f"{TAG}timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    whole = r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][\d_]*)$"
    ConfigLoader.add_implicit_resolver(INT, re.compile(whole), list("-+0123456789"))
    pattern = r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)$"
    ConfigLoader.add_implicit_resolver(FLOAT, re.compile(pattern), list("-+.0123456789"))


keep_plain_types()
add_number_resolvers()
