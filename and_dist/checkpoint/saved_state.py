"""Validate state.json, which describes a checkpoint that may be damaged or foreign.

A validated state names only files of a checkpoint, which lie in its own folder.
"""

from __future__ import annotations

from typing import Annotated, Any

import pydantic
from pydantic import Field

from and_dist.runs.records import Count, Record, Seconds, Text, Word, check

FileName = Annotated[Word, Field(pattern=r"^shard-\d+-model-\d+-of-\d+\.safetensors$")]
Row = Annotated[Word, Field(pattern=r"^\d{1,12}$")]


class SavedFile(Record):
    """Hold the size and checksum of a file."""

    bytes: Count
    sha256: Annotated[Word, Field(pattern=r"^[0-9a-f]{64}$")]


class SavedImages(Record):
    """Describe the images that the run was trained on."""

    rows: Count
    content_hash: Word


class SavedProgress(Record):
    """Hold the progress of the run."""

    round_index: Count
    epochs: Count
    step: Count
    is_begun: bool = False
    seconds: Seconds = 0.0


class SavedState(Record):
    """Hold the keys of every checkpoint."""

    files: dict[FileName, SavedFile]
    bad_images: dict[Row, Text] = Field(default_factory=dict)


class SavedTraining(SavedState):
    """Hold the keys of a checkpoint of training."""

    progress: SavedProgress
    num_anchors: Count
    losses: dict[Word, float]
    skipped: list[Annotated[list[Count], Field(min_length=2, max_length=2)]]
    images: SavedImages
    config: dict[Word, Any]
    metrics_bytes: Count
    metrics_lines: Count | None = None

    @pydantic.model_validator(mode="after")
    def check_anchors(self) -> SavedTraining:
        """Raise ValueError if there were more anchors than images."""
        if self.num_anchors > self.images.rows:
            raise ValueError("it has more anchors than images")
        return self


class SavedProbe(SavedState):
    """Hold the keys of a checkpoint of linear classifiers."""

    steps_done: Count
    sums: list[float]
    losses: list[list[float]]


def check_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return a validated state; raise ValueError where a key has another kind of value."""
    model = SavedTraining if "progress" in state else SavedProbe if "sums" in state else SavedState
    return check(model, state)
