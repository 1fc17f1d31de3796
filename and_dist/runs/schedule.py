"""How many epochs and steps a run has, and where in it one is. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Schedule:
    epochs: tuple[int, ...]
    """Of every round, round 0 included."""
    steps_per_epoch: int

    @property
    def last_round(self) -> int:
        return len(self.epochs) - 1

    @property
    def total_steps(self) -> int:
        return self.steps_before(len(self.epochs))

    def epoch_number(self, round_index: int, epoch: int) -> int:
        """Epochs counted over all rounds: what order and augmentation follow from."""
        return sum(self.epochs[:round_index]) + epoch

    def steps_before(self, round_index: int, epoch: int = 0) -> int:
        return self.epoch_number(round_index, epoch) * self.steps_per_epoch

    def place_of(self, record: dict[str, Any]) -> str:
        """Of a step's line in metrics.jsonl."""
        at_round, epoch = record["round"], record["epoch"]
        step = record["step"] - self.steps_before(at_round, epoch)
        return (
            f"round {at_round}/{self.last_round} epoch {epoch + 1}/{self.epochs[at_round]} "
            f"step {step}/{self.steps_per_epoch}"
        )
