"""Count the epochs and steps of a run, and tell where in it a step is. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """Holds the epochs of every round and the steps of an epoch."""

    epochs: tuple[int, ...]
    """The epochs of each round, round 0 included."""
    steps_per_epoch: int

    @property
    def last_round(self) -> int:
        """Return the index of the last round."""
        return len(self.epochs) - 1

    @property
    def total_steps(self) -> int:
        """Return the steps of the whole run."""
        return self.steps_before(len(self.epochs))

    def epoch_number(self, round_index: int, epoch: int) -> int:
        """Return an epoch's number over all rounds, which order and augmentation follow from."""
        return sum(self.epochs[:round_index]) + epoch

    def steps_before(self, round_index: int, epoch: int = 0) -> int:
        """Return the steps of all rounds before the beginning of an epoch."""
        return self.epoch_number(round_index, epoch) * self.steps_per_epoch

    def steps_done(self, round_index: int, epochs: int, step: int) -> int:
        """Return the steps of all rounds up to a place: `epochs` and `step` of it are finished."""
        return self.steps_before(round_index, epochs) + step

    def steps_of_round(self, round_index: int) -> int:
        """Return the steps of a round."""
        return self.epochs[round_index] * self.steps_per_epoch

    def round_of(self, round_index: int) -> str:
        """Describe a round among all."""
        return f"round {round_index}/{self.last_round}"

    def place_of(self, record: dict[str, Any]) -> str:
        """Describe where in the run a step is, given its line in metrics.jsonl."""
        at_round, epoch = record["round"], record["epoch"]
        step = record["step"] - self.steps_before(at_round, epoch)
        return (
            f"{self.round_of(at_round)} epoch {epoch + 1}/{self.epochs[at_round]} "
            f"step {step}/{self.steps_per_epoch}"
        )
