"""The parts of a training step, marked for whoever measures them (profiling.py).

They follow each other and hold all that a step does, so their times add up to its own.
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
MARK = "and-dist: "


def step_phase(name: StepPhase) -> AbstractContextManager[object]:
    return record_function(MARK + name)
