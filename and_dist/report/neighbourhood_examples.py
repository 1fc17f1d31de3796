"""Choose examples of each round's neighbourhoods from the last checkpoint of the round.

N all rows, A anchors in ascending order of entropy, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from and_dist.checkpoint.reader import OpenedCheckpoint
from and_dist.checkpoint.storage import list_and_look, load_tensors, read_checkpoint
from and_dist.config.schema import Config
from and_dist.distributed.world import World
from and_dist.evaluation.neighbourhood_stats import find_hubs
from and_dist.method.neighbour_table import Neighbourhoods

BANDS = ("low", "middle", "high")
"""The parts of the range of entropies that examples are chosen from."""
PER_BAND = 30
"""The largest number of anchors that are shown of each band."""
MOST_NEIGHBOURS = 6
"""The largest number of neighbours that are shown of an anchor."""
MOST_PICTURES = 2400
"""The largest number of pictures in the neighbourhoods of all rounds together."""
WIDTH = 0.1
"""The share of the anchors that lie in each band."""


@dataclass(frozen=True)
class Example:
    """Describe an anchor with its nearest neighbours."""

    round_index: int
    band: str
    row: int
    entropy: float
    neighbours: tuple[int, ...]


@dataclass(frozen=True)
class RoundTable:
    """Hold the examples of one round, from its last checkpoint."""

    round_index: int
    cut: float
    """The highest entropy of an anchor."""
    examples: tuple[Example, ...]
    hubs: tuple[tuple[int, int], ...]
    """Pairs of a row that most anchors have as a neighbour, and the number of these anchors."""


def checkpoints_of(
    run: Path, config: Config, note: Callable[[str], None]
) -> list[OpenedCheckpoint]:
    """Return the last readable checkpoint of each round, in order; note why others are not."""
    folder = run / "checkpoints"
    by_round: dict[str, OpenedCheckpoint] = {}
    for name in sorted(list_and_look(folder)):
        try:
            checkpoint, state = read_checkpoint(folder / name, "progress")
        except ValueError as error:
            note(str(error))
        else:
            by_round[name.partition("-")[0]] = OpenedCheckpoint(run, config, checkpoint, state)
    return list(by_round.values())


def read_round(
    opened: OpenedCheckpoint, labels_N: Tensor | None, per_band: int, world: World
) -> RoundTable | None:
    """Return examples and hubs of a round, or None if the round discovered no neighbourhoods."""
    table = load_neighbourhoods(opened, world)
    if len(table.anchors_A) == 0:
        return None
    round_index = int(opened.state["progress"]["round_index"])
    chosen = choose_examples(table, round_index, labels_N, per_band)
    cut = table.entropy_N[table.anchors_A[-1]].item()
    return RoundTable(round_index, cut, chosen, tuple(find_hubs(table)))


def load_neighbourhoods(opened: OpenedCheckpoint, world: World) -> Neighbourhoods:
    """Load the table of neighbourhoods that a checkpoint holds."""
    num_rows, num_neighbours = opened.num_rows, opened.config.curriculum.neighbours
    table = Neighbourhoods(
        torch.empty(num_rows, num_neighbours, dtype=torch.int64),
        torch.empty(num_rows, dtype=torch.float64),
        torch.empty(opened.state["num_anchors"], dtype=torch.int64),
        recall=1.0,
    )
    tensors = {
        "neighbours": table.neighbours_NK,
        "entropy": table.entropy_N,
        "anchors": table.anchors_A,
    }
    load_tensors(opened.checkpoint, tensors, world)
    return table


def anchors_per_band(config: Config, num_rounds: int) -> int:
    """Return how many anchors to show of each band: at least 3, and about MOST_PICTURES in all."""
    pictures = 1 + min(config.curriculum.neighbours, MOST_NEIGHBOURS)
    return max(3, min(PER_BAND, MOST_PICTURES // (pictures * len(BANDS) * max(num_rounds, 1))))


def choose_examples(
    table: Neighbourhoods, round_index: int, labels_N: Tensor | None, per_band: int
) -> tuple[Example, ...]:
    """Choose anchors of each band: of as many classes as possible, or evenly without labels."""
    anchors = table.anchors_A.tolist()
    width = max(1, round(WIDTH * len(anchors)))
    middle = (len(anchors) - width) // 2
    starts = {"low": 0, "middle": middle, "high": len(anchors) - width}
    found = []
    for band, start in starts.items():
        of_band = anchors[start : start + width]
        for row in _spread(of_band, labels_N, per_band):
            neighbours = table.neighbours_NK[row, :MOST_NEIGHBOURS].tolist()
            found.append(
                Example(round_index, band, row, table.entropy_N[row].item(), tuple(neighbours))
            )
    return tuple(found)


def _spread(rows: Sequence[int], labels_N: Tensor | None, count: int) -> list[int]:
    """Return `count` rows in order: the first of each class, then the second of each, and so on.

    Without labels the rows are evenly spaced.
    """
    if labels_N is None:
        places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
        return [rows[at] for at in dict.fromkeys(places.tolist())]
    seen: dict[int, int] = {}
    turns = []
    for at, label in enumerate(labels_N[torch.tensor(rows)].tolist()):
        seen[label] = seen.get(label, -1) + 1
        turns.append((seen[label], at))
    return [rows[at] for at in sorted(at for _, at in sorted(turns)[:count])]
