"""Define the numbers and texts that keys take, with the bounds of each. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from and_dist.config.limits import (
    LONGEST_NAME,
    LONGEST_PATH,
    MOST_EPOCHS,
    MOST_GB,
    MOST_ROUNDS,
    MOST_ROWS,
    MOST_SECONDS,
    MOST_THREADS,
)

Positive = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]
"""A number above 0."""
NonNegative = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]
"""A number of at least 0."""
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""A number between 0 and 1."""
Seconds = Annotated[float, Field(gt=0, le=MOST_SECONDS, allow_inf_nan=False)]
"""A time to wait."""
Gigabytes = Annotated[float, Field(ge=0, le=MOST_GB, allow_inf_nan=False)]
"""An amount of memory."""
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
"""A number of steps, images or files."""
CountOrNone = Annotated[int, Field(ge=0, le=1_000_000_000)]
"""A number of epochs, which may be 0."""
Rows = Annotated[int, Field(ge=1, le=MOST_ROWS)]
"""A number of images of a set."""
Rounds = Annotated[int, Field(ge=0, le=MOST_ROUNDS)]
"""A number of rounds after round 0."""
Epochs = Annotated[int, Field(ge=1, le=MOST_EPOCHS)]
"""A number of passes over the images."""
Threads = Annotated[int, Field(ge=1, le=MOST_THREADS)]
"""A number of threads of one rank."""
Minutes = Annotated[int, Field(ge=1, le=MOST_SECONDS // 60)]
"""A duration in whole minutes."""
Side = Annotated[int, Field(ge=1, le=65_536)]
"""A side of stored images, in pixels."""
Channel = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
"""A mean of the pixels of a channel."""
Deviation = Annotated[float, Field(ge=1e-6, le=1000, allow_inf_nan=False)]
"""A deviation of the pixels of a channel; a smaller one makes pixels too large for float16."""


def _check_path(path: str) -> str:
    """Raise ValueError for a path that no file can have."""
    if "\0" in path:
        raise ValueError("a path has no zero characters")
    if max(len(part.encode()) for part in path.split("/")) > LONGEST_NAME:
        raise ValueError(f"a name in a path has at most {LONGEST_NAME} bytes")
    return path


PathText = Annotated[str, Field(max_length=LONGEST_PATH), AfterValidator(_check_path)]
"""A path, or another name of a set of images."""
ShortText = Annotated[str, Field(max_length=LONGEST_NAME)]
"""A name of something that the program knows."""
