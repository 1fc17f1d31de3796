"""Validate sections of keys: typed, frozen and strict. No torch.

Each error is one plain sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, TypeVar, Union, get_origin

import pydantic
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticSerializationError

from and_dist.config.limits import MOST_SECONDS
from and_dist.config.secret_values import is_secret
from and_dist.config.suggestions import did_you_mean, near_keys


class Section(BaseModel):
    """Hold a group of keys; unknown keys and wrong types are errors, and values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


S = TypeVar("S", bound=Section)
PLAIN = pydantic.TypeAdapter(Any, config=ConfigDict(ser_json_inf_nan="constants"))
"""Writes plain data as JSON. The default writes NaN and infinity as null, which is none."""
MOST_SAID = 10
"""The most wrong keys that one error message tells of."""
LONGEST_VALUE = 120
"""The letters of a wrong value that a message shows."""


def build(section: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """Return a section with the given values.

    Raise ValueError with one sentence for each wrong value; each begins with `where`.
    """
    try:
        # Strict mode of Python values refuses lists for tuples. Of JSON it takes them, and still
        # refuses "1" for a number and 1 for a boolean.
        return section.model_validate_json(PLAIN.dump_json(dict(values)))
    except ValidationError as error:
        errors_at: dict[tuple[str, ...], list[Any]] = {}
        for one in error.errors():
            errors_at.setdefault(keys_of(one, section), []).append(one)
        told = list(errors_at.items())[:MOST_SAID]
        said = [where + describe(keys, all_of, section) for keys, all_of in told]
        if len(errors_at) > len(told):
            said.append(f"{where}{len(errors_at) - len(told):,} more keys are wrong")
        raise ValueError("\n".join(said)) from None
    except (RecursionError, PydanticSerializationError, UnicodeError) as error:
        raise ValueError(f"the config holds a value that is no plain YAML data: {error}") from None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping with dotted keys as nested ones."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        inside = nested
        for section in sections:
            inside = inside.setdefault(section, {})
        inside[name] = value
    return nested


def keys_of(error: Any, root: type[Section]) -> tuple[str, ...]:
    """Return the sections and the key that a validation error is about.

    An error's place also names the alternatives of a key that takes several types, which nobody
    wrote. The values of a mapping are such keys.
    """
    section: type[Section] | None = root
    takes_several, is_mapping, parts = False, False, []
    for part in error["loc"]:
        if not takes_several or isinstance(part, int):
            parts.append(str(part))
        takes_several |= is_mapping
        field = section.model_fields.get(str(part)) if section is not None else None
        kind = field.annotation if field is not None else None
        takes_several |= get_origin(kind) in (Union, UnionType)
        is_mapping = get_origin(kind) is dict
        section = kind if isinstance(kind, type) and issubclass(kind, Section) else None
    return tuple(parts)


def describe(keys: tuple[str, ...], errors: Sequence[Any], root: type[Section]) -> str:
    """Return a sentence about the errors of a key, with the values or keys that are allowed."""
    path, parents, error = clip(".".join(keys)), keys[:-1], errors[0]
    if error["type"] == "extra_forbidden":
        section = section_at(parents, root)
        owner = ".".join(parents) or "the top level"
        near = did_you_mean(near_keys(path, root))
        return f"unknown key {path!r}; {owner} takes: {', '.join(section.model_fields)}{near}"
    if error["type"] in ("model_type", "model_attributes_type"):
        section = section_at(keys, root)
        return f"{path} is a section, not a value; it takes: {', '.join(section.model_fields)}"
    said = str(error["ctx"]["error"]) if error["type"] == "value_error" else ""
    if said and (not path or path in said):
        return said
    value = "" if is_secret(path) else f" = {clip(repr(error['input']))}"
    wanted = said or ", or ".join(map(_wanted, errors))
    return f"{path}{value} will not do: {wanted}"


def clip(text: str, most: int = LONGEST_VALUE) -> str:
    """Return a text, cut where it is longer than a message should be."""
    return text if len(text) <= most else f"{text[:most]}…"


def _wanted(error: Any) -> str:
    """Return what an error asks for; a pattern as a sentence."""
    pattern = error.get("ctx", {}).get("pattern")
    return PATTERNS.get(pattern) or str(error["msg"]).lower()


NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
PATTERNS = {
    NAME: "it takes letters, digits, dots, dashes and underscores, a letter or digit first",
    r"^[^\x00-\x1f\x7f]+$": "it takes one line of text",
    r"^[^\x00]*$": "it takes text without zero characters",
    r"^[A-Za-z][A-Za-z0-9-]*$": "it takes letters, digits and dashes, a letter first",
    r"^[A-Za-z_][A-Za-z0-9_]*$": "it takes letters, digits and underscores, no digit first",
}
"""Patterns of keys, as regular expressions and in words."""


def section_at(keys: Sequence[str], root: type[Section]) -> type[Section]:
    """Return the type of the section at a path of keys."""
    section = root
    for key in keys:
        annotation = section.model_fields[key].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, Section)
        section = annotation
    return section


DURATIONS = (
    r"(?P<d>\d+)-(?P<h>\d+)(?::(?P<m>\d+)(?::(?P<s>\d+))?)?",
    r"(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>\d+)",
    r"(?P<m>\d+)",
    r"(?:(?P<d>\d+)d)?(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m)?(?:(?P<s>\d+)s)?",
)
"""Patterns of durations: SLURM's forms, minutes alone, and 2d12h30m."""


def parse_duration(text: str, name: str) -> float:
    """Return the seconds of a duration; raise ValueError for anything else."""
    matches = [found for form in DURATIONS if (found := re.fullmatch(form, text))]
    units = matches[0].groupdict() if matches else {}
    lengths = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    # Python refuses to read thousands of digits; more than ten are too many in any unit.
    digits = {unit: (number or "0").lstrip("0") for unit, number in units.items()}
    is_short = all(len(number) <= 10 for number in digits.values())
    seconds = sum(lengths[unit] * int(number or 0) for unit, number in digits.items() if is_short)
    if not is_short or seconds > MOST_SECONDS:
        raise ValueError(
            f"{name} = {clip(repr(text))} is too long; the longest is {MOST_SECONDS // 86400} days"
        )
    if seconds == 0:
        raise ValueError(
            f"{name} = {clip(repr(text))} is no duration; right are 2d12h, 90m, 90 (minutes), "
            "90:00, 1:30:00, 2-12 (days-hours) or 2-12:30:00"
        )
    return float(seconds)
