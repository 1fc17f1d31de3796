"""What the checkpoints at the ends of rounds say of each round's neighbourhoods.

N all rows, S anchors by ascending entropy, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from and_dist.checkpoint.names import list_checkpoints
from and_dist.checkpoint.reader import OpenedCheckpoint
from and_dist.checkpoint.storage import load_tensors, read_checkpoint
from and_dist.config.schema import Config
from and_dist.distributed.world import World
from and_dist.evaluation.neighbourhood_stats import find_hubs
from and_dist.method.neighbour_table import Neighbourhoods

BANDS = ("low", "middle", "high")
PER_BAND = 30
"""Anchors shown of each band of entropies."""
MOST_NEIGHBOURS = 6
MOST_PICTURES = 2400
"""In the neighbourhoods of all rounds."""
WIDTH = 0.1
"""Share of the anchors that a band is chosen from."""


@dataclass(frozen=True)
class Example:
    """An anchor to look at."""

    round_index: int
    band: str
    row: int
    entropy: float
    neighbours: tuple[int, ...]


@dataclass(frozen=True)
class RoundTable:
    """A round's neighbourhoods, from the last checkpoint of that round there is."""

    round_index: int
    cut: float
    """Entropy of the last row that was taken as an anchor."""
    examples: tuple[Example, ...]
    hubs: tuple[tuple[int, int], ...]
    """Rows that most anchors have for a neighbour, and how many."""


def checkpoints_of(
    run: Path, config: Config, note: Callable[[str], None]
) -> list[OpenedCheckpoint]:
    """The last of every round that can be read, in order; why another cannot is noted."""
    folder = run / "checkpoints"
    by_round: dict[str, OpenedCheckpoint] = {}
    for name in sorted(list_checkpoints(folder)):
        try:
            checkpoint, state = read_checkpoint(folder / name)
        except ValueError as error:
            note(str(error))
        else:
            by_round[name.partition("-")[0]] = OpenedCheckpoint(run, config, checkpoint, state)
    return list(by_round.values())


def read_round(
    opened: OpenedCheckpoint, labels_N: Tensor | None, per_band: int, world: World
) -> RoundTable | None:
    """None for a round without discovery."""
    table = load_neighbourhoods(opened, world)
    if len(table.anchors_A) == 0:
        return None
    round_index = int(opened.state["progress"]["round_index"])
    chosen = choose_examples(table, round_index, labels_N, per_band)
    cut = table.entropy_N[table.anchors_A[-1]].item()
    return RoundTable(round_index, cut, chosen, tuple(find_hubs(table)))


def load_neighbourhoods(opened: OpenedCheckpoint, world: World) -> Neighbourhoods:
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
    """So that all pictures together stay few enough."""
    pictures = 1 + min(config.curriculum.neighbours, MOST_NEIGHBOURS)
    return max(3, min(PER_BAND, MOST_PICTURES // (pictures * len(BANDS) * max(num_rounds, 1))))


def choose_examples(
    table: Neighbourhoods, round_index: int, labels_N: Tensor | None, per_band: int
) -> tuple[Example, ...]:
    """Of each band, as many classes as can be; otherwise evenly."""
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
    """The first of every class, then the second, and so on, until there are enough; in order."""
    if labels_N is None:
        places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
        return [rows[at] for at in dict.fromkeys(places.tolist())]
    seen: dict[int, int] = {}
    turns = []
    for at, label in enumerate(labels_N[torch.tensor(rows)].tolist()):
        seen[label] = seen.get(label, -1) + 1
        turns.append((seen[label], at))
    return [rows[at] for at in sorted(at for _, at in sorted(turns)[:count])]
