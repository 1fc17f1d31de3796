"""Compare configs: which keys may differ between runs of one experiment or starts of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from and_dist.config.schema import Config
from and_dist.config.validation import flatten

RESUMABLE_SECTIONS = ("name", "run", "evaluation", "paper")
"""Sections a resumed run may change: they do not touch what is trained."""


SPEED_ONLY_KEYS = (
    "name",
    "seed",
    "run.",
    "data.cache_gb",
    "data.hardware_decoder",
    "data.bad_images",
    "discovery.memory_mb",
    "optim.fused",
    "encoder.channels_last",
    "encoder.compile",
)
"""Keys, or sections, in which two runs of one experiment may differ: they change how fast it runs,
or the seed."""


PATHS = ("data.train", "data.test")
"""Of the images, which every machine has elsewhere."""


PAPER_SAFE_KEYS = (*SPEED_ONLY_KEYS, *PATHS, "data.test_resize", "evaluation.")
"""Keys, or sections, that may be set over an experiment of the paper, which still is that one."""


def is_among(key: str, names: Sequence[str]) -> bool:
    """Whether it is one of them, or in one of the sections, which end with a dot."""
    return any(key == name or (name[-1] == "." and key.startswith(name)) for name in names)


def differing_keys(ours: Config, theirs: Mapping[str, Any]) -> list[str]:
    """Keys of two resolved configs that would train another model, as `key: theirs -> ours`."""
    # A key that was not there yet when theirs was written had what is its default now.
    mine = flatten(ours.model_dump(mode="json"))
    other = flatten(Config().model_dump(mode="json")) | flatten(theirs)
    return [
        f"{key}: {other.get(key)} -> {mine.get(key)}"
        for key in sorted(mine.keys() | other.keys())
        if key.split(".")[0] not in RESUMABLE_SECTIONS and mine.get(key) != other.get(key)
    ]


TEST_KEYS = ("test", "limit_test", "test_resize")
"""Of config.data: which test images, and how they are seen."""
