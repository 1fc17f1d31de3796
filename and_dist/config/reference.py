"""Describe every key of a config by the schema: type, bounds, default and meaning. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from and_dist.config.schema import Config
from and_dist.config.suggestions import did_you_mean, near_keys
from and_dist.config.validation import clip

Schema = Mapping[str, Any]
NO_BOUND = 1e30
"""The largest number that any key takes."""
NUMBERS = {"integer": "whole number", "number": "number"}


@dataclass(frozen=True)
class KeyDescription:
    """Hold what the schema says of one key."""

    key: str
    takes: str
    """Its type and bounds in words, or the values that it takes."""
    default: str
    meaning: str


def describe_keys(wanted: str | None = None) -> list[KeyDescription]:
    """Return all keys, those of a section, or one; raise ValueError if there is no such key."""
    schema = Config.model_json_schema()
    known = list(_walk(schema, schema.get("$defs", {}), ""))
    if wanted is None:
        return known
    found = [one for one in known if one.key == wanted or one.key.startswith(f"{wanted}.")]
    if not found:
        near = did_you_mean(near_keys(wanted, Config))
        raise ValueError(f"there is no key or section {clip(repr(wanted))}{near}")
    return found


def _walk(section: Schema, sections: Schema, prefix: str) -> Iterator[KeyDescription]:
    """Yield the keys of a section, and of the sections in it."""
    for name, field in section["properties"].items():
        below = field.get("$ref", "").rpartition("/")[2]
        if below:
            yield from _walk(sections[below], sections, f"{prefix}{name}.")
            continue
        none: Any = {} if field.get("type") == "object" else None
        default = json.dumps(field.get("default", none), ensure_ascii=False)
        meaning = " ".join(field.get("description", "").split())
        yield KeyDescription(f"{prefix}{name}", _takes(field), default.strip('"'), meaning)


def _takes(field: Schema) -> str:
    """Return the type and bounds of a field in words."""
    if "anyOf" in field:
        return " or ".join(map(_takes, field["anyOf"]))
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    kind = field.get("type")
    if kind in NUMBERS:
        return NUMBERS[kind] + _bounds(field)
    if kind == "array":
        items = field.get("prefixItems") or [field.get("items", {})]
        several = f"{len(items)} of" if "prefixItems" in field else "list of"
        return f"{several} {_takes(items[0])}"
    names = {"boolean": "true | false", "null": "null", "string": "text", "object": "names: values"}
    return names.get(str(kind), str(kind))


def _bounds(field: Schema) -> str:
    """Return the bounds of a number, without one that only keeps sums finite."""
    said = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [
        f"{sign} {_number(field[name])}"
        for name, sign in said.items()
        if abs(field.get(name, NO_BOUND)) < NO_BOUND
    ]
    return f" {' and '.join(bounds)}" if bounds else ""


def _number(value: float) -> str:
    """Return a bound as people write it."""
    return f"{value:,}" if float(value).is_integer() else f"{value:g}"
