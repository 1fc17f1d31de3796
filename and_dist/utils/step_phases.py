"""Mark the parts of a training step in torch's profiler (profiling.py reads the marks).

The parts follow each other and cover the whole step, so their times add up to its own.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

from torch.profiler import record_function

StepPhase = Literal[
    "waiting for images",
    "encoder, forward",
    "gathering the batch",
    "partition",
    "positives",
    "exchanging parts",
    "loss",
    "backward",
    "optimiser",
    "bank",
    "book-keeping",
]
"""Names of the parts of a step."""
MARK = "and-dist: "
"""The prefix by which the profiler's records of our parts are known."""


def step_phase(name: StepPhase) -> AbstractContextManager[object]:
    """Return a context that marks one part of a step."""
    return record_function(MARK + name)
