"""Read and merge YAML as plain data: config files and `key=value` overrides. No torch."""

from __future__ import annotations

import copy
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from and_dist.utils.plain_files import read_plain

MOST_VALUES = 100_000
"""The most values in a YAML file, with those that it repeats by aliases."""


def read_yaml(path: Path, may_be_link: bool = True) -> dict[str, Any]:
    """Return the mapping in a YAML file; raise ValueError if it is none or cannot be read.

    With `may_be_link` False it has to be a regular file, as in a folder of somebody else's.
    """
    try:
        text = path.read_text(encoding="utf-8") if may_be_link else read_plain(path)
    except OSError as error:
        raise ValueError(f"cannot read config {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"config {path} is not UTF-8 text: {error}") from None
    try:
        values = yaml.load(text, Loader=ConfigLoader)
        if _count_values(values, {}) > MOST_VALUES:
            raise ValueError("it holds too many values")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(
            f"config {path} is not plain YAML: {' '.join(str(error).split())}"
        ) from None
    return as_mapping(values, f"config {path}")


def _count_values(values: Any, known: dict[int, int]) -> int:
    """Return how many values there are when every alias is written out.

    A file of ten lines can stand for more than a machine can hold.
    """
    if not isinstance(values, (dict, list)):
        return 1
    if id(values) not in known:
        inside = values.values() if isinstance(values, dict) else values
        known[id(values)] = 1 + sum(_count_values(value, known) for value in inside)
    return known[id(values)]


def read_layers(path: Path, above: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    """Return a YAML file as the last of its layers, after those of the files that its `base` names.

    They lie beside it, and are named from left to right. Raise ValueError if a file is its own
    base.
    """
    if path.resolve() in above:
        raise ValueError(f"config {path} is its own base")
    values = read_yaml(path)
    named = values.pop("base", [])
    bases = [named] if isinstance(named, str) else named
    if not isinstance(bases, list) or not all(isinstance(name, str) for name in bases):
        raise ValueError(f"config {path}: base = {named!r} is not the name of a file, or a list")
    below = [read_layers(path.parent / name, (*above, path.resolve())) for name in bases]
    return [*(layer for layers in below for layer in layers), values]


def parse_override(text: str) -> dict[str, Any]:
    """Return `optim.lr=0.1` as {"optim": {"lr": 0.1}}; raise ValueError for another form."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ValueError(f"override {text!r} is not of the form key=value, such as optim.lr=0.06")
    try:
        parsed = yaml.load(value, Loader=ConfigLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"override {text!r}: {' '.join(str(error).split())}") from None
    for part in reversed(key.split(".")):
        parsed = {part: parsed}
    return typing.cast(dict[str, Any], parsed)


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
    """Return values that are a mapping with text keys; raise ValueError if they are not."""
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{where} is not a mapping of keys to values")
    for key, value in values.items():
        if not isinstance(key, str):
            raise ValueError(f"{where}: key {key!r} is not text")
        if isinstance(value, dict):
            as_mapping(value, f"{where}, under {key!r}")
    return values


class ConfigLoader(yaml.SafeLoader):
    """Load plain data only, refuse repeated keys, and read 1e-3 as a number and 1:30:00 as text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping; raise YAMLError if a key is repeated or no text."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if isinstance(key, (list, dict, set)):
                raise yaml.YAMLError(f"a key must be text, got {key!r}")
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key {key!r} stands twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def add_number_resolvers() -> None:
    """Make ConfigLoader read 1e-3 as a number and 1:30:00 as text.

    YAML 1.1 takes 1e-3 for text, and 1:30:00 for a number to base 60, which is a duration here.
    """
    ConfigLoader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:int"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    whole = r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][\d_]*)$"
    ConfigLoader.add_implicit_resolver(
        "tag:yaml.org,2002:int", re.compile(whole), list("-+0123456789")
    )
    pattern = r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)$"
    ConfigLoader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(pattern), list("-+.0123456789")
    )


add_number_resolvers()
