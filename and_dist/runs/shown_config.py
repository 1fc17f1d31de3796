"""Show a config in the trackers, without passwords and keys. No torch."""

from __future__ import annotations

from typing import Any

import yaml

from and_dist.config.comparison import RESUMABLE_SECTIONS, SPEED_ONLY_KEYS, is_among
from and_dist.config.schema import OBJECTIVES, Config
from and_dist.config.secret_values import hide_secrets
from and_dist.config.validation import flatten


def shown_config(config: Config) -> dict[str, Any]:
    """Return a config as plain values, with *** for secret ones."""
    return {key: _hidden(key, value) for key, value in config.model_dump(mode="json").items()}


def as_yaml(config: Config) -> str:
    """Return a config as Markdown: YAML in a fence."""
    text = yaml.safe_dump(shown_config(config), sort_keys=False, allow_unicode=True)
    return f"```yaml\n{text}```\n"


def keys_that_train(config: Config) -> dict[str, bool | int | float | str]:
    """Return the keys that decide what is trained, with their values as plain ones."""
    other_methods = OBJECTIVES.keys() - {config.method}
    return {
        key: _as_cell(value)
        for key, value in flatten(shown_config(config)).items()
        if key == "seed"
        or not (
            key.split(".")[0] in {*RESUMABLE_SECTIONS, *other_methods}
            or is_among(key, SPEED_ONLY_KEYS)
        )
    }


def _hidden(key: str, value: Any) -> Any:
    """Return a value of a key, or of the section of that name, without secret ones."""
    if isinstance(value, dict):
        return {name: _hidden(name, inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_hidden(key, inner) for inner in value]
    if not isinstance(value, str):
        return value
    (shown,) = hide_secrets([f"{key}={value}"])
    return shown.partition("=")[2]


def _as_cell(value: Any) -> bool | int | float | str:
    """Return a value as one of a table: lists and none as text."""
    if isinstance(value, (bool, int, float, str)):
        return value
    return "none" if value is None else ", ".join(map(str, value))
