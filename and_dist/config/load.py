"""Load a config: everything that a run is asked for, typed and frozen; unknown keys are errors.

Values are layered: field defaults < `preset` < the YAML files from left to right < `key=value`; a
YAML file lies over the files that its own `base` names.

This module imports no torch, so a login node can check a config without it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from and_dist.config.comparison import AUTO, PAPER_SAFE_KEYS, is_among
from and_dist.config.schema import Config
from and_dist.config.shipped import find_config, is_of_the_paper
from and_dist.config.validation import build, flatten, unflatten
from and_dist.config.yaml_files import Layer, merge, parse_override, read_layers, read_yaml

PRESETS: dict[str, dict[str, Any]] = {
    "code": {
        "bank": {"renormalise": True},
        "optim": {"milestones": [120, 160]},
        "evaluation": {"knn_temperature": 0.1},
    },
    "paper": {
        "bank": {"renormalise": False},
        "optim": {"milestones": [80, 120, 160]},
        "evaluation": {"knn_temperature": 0.07},
    },
}
"""Values in which the published code and the paper differ."""


def load_config(
    files: Sequence[str | Path],
    overrides: Sequence[str] = (),
    proposed: Mapping[str, Any] | None = None,
) -> Config:
    """Return the config of YAML files, merged from left to right, and of `key=value` overrides.

    A bare name, such as demo, is a shipped config. `proposed` are values that lie below all of
    them. A layer that sets data.train alone also sets data.test to none: the test images that a
    layer below names are of other classes. Raise ValueError if a file cannot be read or a value is
    wrong.
    """
    read = [layer for file in files for layer in read_layers(find_config(file))]
    given = parse_overrides(overrides)
    layers = [dict(proposed or {}), *(layer.values for layer in read), given]
    layers = _keep_what_was_shipped(layers, read, _build(layers))
    config = _build([_without_others_test(layer) for layer in layers])
    if config.data.test is None:
        # Earlier revisions kept the test images of the layer below.
        as_before = _build(layers)
        if as_before.data.test is not None and _was_begun_with(as_before):
            return as_before
    return config


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the layer of `key=value` overrides, of which later ones win."""
    none: dict[str, Any] = {}
    return reduce(merge, map(parse_override, overrides), none)


SHIPPED_OTHERWISE: dict[str, Any] = {
    "preset": "paper",
    "optim.milestones": None,
    "data.std": None,
    "data.hue_model": "yiq",
    "evaluation.linear.crops": "as_training",
}
"""Keys that the experiments of the paper set otherwise in earlier revisions, and the value that a
run has which was begun before there was the key, or None where it always has one."""


def _keep_what_was_shipped(
    layers: list[dict[str, Any]], read: Sequence[Layer], config: Config
) -> list[dict[str, Any]]:
    """Return the layers with what a run was begun with, where it is the experiments that changed.

    Values that a user sets over an experiment stay.
    """
    experiments = [at for at, layer in enumerate(read, 1) if is_of_the_paper(layer.file)]
    if not experiments or not os.path.lexists(config.folder / "config.yaml"):
        return layers
    shipped = {key for at in experiments for key in flatten(layers[at])}
    begun = read_yaml(config.folder / "config.yaml", may_be_link=False)
    written = SHIPPED_OTHERWISE | flatten(begun)
    kept = {key: written[key] for key in SHIPPED_OTHERWISE.keys() & shipped}
    after = experiments[-1] + 1
    return [*layers[:after], {**unflatten(kept), "paper": begun.get("paper", [])}, *layers[after:]]


def _without_others_test(layer: dict[str, Any]) -> dict[str, Any]:
    """Return a layer that sets data.test where it sets data.train."""
    data = layer.get("data")
    if isinstance(data, Mapping) and "train" in data and "test" not in data:
        return merge(layer, {"data": {"test": None}})
    return layer


def _was_begun_with(config: Config) -> bool:
    """Return whether the run folder holds a run that trains and tests with the config's images."""
    file = config.folder / "config.yaml"
    if not os.path.lexists(file):
        return False
    written = read_yaml(file, may_be_link=False).get("data")
    ours = config.data.train, config.data.test
    return isinstance(written, Mapping) and ours == (written.get("train"), written.get("test"))


def load_run_config(run: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the resolved config in a run folder, and of overrides.

    It may be somebody else's, so it can name no other file as its base. Raise ValueError if the
    folder holds no run.
    """
    file = run / "config.yaml"
    if not os.path.lexists(file):
        raise ValueError(f"{run} is no run folder: it has no config.yaml")
    written = read_yaml(file, may_be_link=False)
    if "name" not in written:
        raise ValueError(f"{file} is not the config of a run, or damaged: it names none")
    try:
        config = _build([written])
    except ValueError as error:
        raise ValueError(f"{file} is damaged, or somebody edited it: {error}") from None
    return _build([written, parse_overrides(overrides)]) if overrides else config


def _build(layers: Sequence[dict[str, Any]]) -> Config:
    """Return the config of layers, merged from the first to the last."""
    merged: dict[str, Any] = {}
    for layer in layers:
        # Changed training would no longer reproduce the figures that an earlier layer names.
        if "paper" not in layer and _trains_otherwise(merged, layer):
            merged.pop("paper", None)
        merged = merge(merged, layer)
    preset = merged.get("preset", "code")
    if isinstance(preset, str) and preset in PRESETS:
        merged = merge(PRESETS[preset], merged)
    return build(Config, merged)


def _trains_otherwise(merged: Mapping[str, Any], layer: Mapping[str, Any]) -> bool:
    """Return whether a layer changes an experiment of the paper into another one."""
    before = flatten(merged)
    return any(
        not is_among(key, PAPER_SAFE_KEYS)
        and (key not in before or before[key] not in (value, AUTO))
        for key, value in flatten(layer).items()
    )
