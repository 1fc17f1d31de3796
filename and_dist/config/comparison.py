"""Compare configs: which keys may differ between runs of one experiment or starts of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from and_dist.config.schema import Config
from and_dist.config.validation import build, clip, flatten

RESUMABLE_SECTIONS = ("name", "run", "evaluation", "paper")
"""Sections that a resumed run may change, because they do not affect training."""


SPEED_ONLY_KEYS = (
    "name",
    "seed",
    "run.",
    "data.cache_gb",
    "data.hardware_decoder",
    "data.bad_images",
    "data.decode_mb",
    "bank.form",
    "bank.products",
    "discovery.memory_mb",
    "optim.fused",
    "encoder.channels_last",
    "encoder.deterministic",
    "encoder.tf32",
    "encoder.compile",
)
"""Keys and sections that change the speed or the seed of an experiment, and nothing else."""


PATHS = ("data.train", "data.test")
"""Keys that hold paths of images, which differ between machines."""


PAPER_SAFE_KEYS = (*SPEED_ONLY_KEYS, *PATHS, "preset", "data.test_resize", "evaluation.")
"""Keys and sections that may be set over an experiment of the paper without changing it; tables
keep those of preset=paper in rows of their own."""


AUTO_KEYS = ("bank.form", "bank.products", "discovery.memory_mb", "encoder.precision")
"""Keys whose value `auto` a run replaces by another at its first start, and keeps."""
AUTO = "auto"
BEFORE = {"bank.form": "attention", "encoder.precision": "float32"}
"""Values of keys for runs that were begun before there were such keys."""
BEFORE_ON_GPU = {"bank.products": "stored"}
"""Values that a run on GPUs took before bank.products=auto chose for them and wrote that down."""


CHANGED_DEFAULTS = ("evaluation.every",)
"""Keys whose default was another in earlier revisions; a run keeps what it has written."""


def is_among(key: str, names: Sequence[str]) -> bool:
    """Return whether a key is one of `names`, or in a section among them (they end with a dot)."""
    return any(key == name or (name[-1] == "." and key.startswith(name)) for name in names)


def differing_keys(ours: Config, theirs: Mapping[str, Any]) -> list[str]:
    """Return the keys that would train another model, as `key: theirs -> ours`.

    A key of `auto` takes what the run has chosen (keep_choices), so it never differs; nor does one
    for which an earlier revision wrote `auto` without choosing.
    """
    # A config of an earlier revision may lack a key, which then had its present default.
    mine = flatten(ours.model_dump(mode="json"))
    other = flatten(Config().model_dump(mode="json")) | flatten(theirs)
    return [
        f"{clip(key)}: {clip(str(other.get(key)))} -> {clip(str(mine.get(key)))}"
        for key in sorted(mine.keys() | other.keys())
        if key.split(".")[0] not in RESUMABLE_SECTIONS
        and mine.get(key) != other.get(key)
        and not (key in AUTO_KEYS and AUTO in (mine.get(key), other.get(key)))
    ]


def keep_choices(config: Config, written: Mapping[str, Any], was_on_gpu: bool) -> Config:
    """Return the config with what a run has written for its keys of `auto` at an earlier start, and
    for those that nobody sets and whose default has changed."""
    ours = flatten(config.model_dump(mode="json"))
    settled = {key: value for key, value in flatten(written).items() if value != AUTO}
    theirs = BEFORE | (BEFORE_ON_GPU if was_on_gpu else {}) | settled
    chosen = {key: theirs[key] for key in AUTO_KEYS if ours[key] == AUTO and key in theirs}
    kept = {
        key: settled[key]
        for key in CHANGED_DEFAULTS
        if key in settled and not is_set(config, key) and settled[key] != ours[key]
    }
    return with_values(config, chosen | kept)


def is_set(config: Config, key: str) -> bool:
    """Return whether a file, a preset or an override sets a key."""
    section, name = key.split(".")
    is_in_section = name in getattr(config, section).model_fields_set
    return section in config.model_fields_set and is_in_section


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return the config with other values of some keys, such as {"discovery.memory_mb": 500}."""
    changed = config.model_dump(mode="json")
    for key, value in values.items():
        section, name = key.split(".")
        changed[section][name] = value
    return build(Config, changed) if values else config


TEST_KEYS = ("test", "limit_test", "test_resize")
"""Keys of config.data that say which test images there are and how they are cropped."""
