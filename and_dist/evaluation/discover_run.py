"""Run one discovery from a checkpoint and write its tables (`and-dist discover RUN`)."""

from __future__ import annotations

import json
import time
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from and_dist.checkpoint.reader import (
    OpenedCheckpoint,
    find_images,
    load_bank,
    refuse_corrupt,
)
from and_dist.checkpoint.storage import load_tensors
from and_dist.config.schema import Config
from and_dist.distributed.collectives import on_coordinator
from and_dist.distributed.world import World
from and_dist.evaluation.neighbourhood_stats import describe_neighbourhoods, in_one_line
from and_dist.method.curriculum import num_anchors
from and_dist.method.discovery import SearchOptions, check_discovery, discover
from and_dist.method.neighbour_table import Neighbourhoods
from and_dist.runs.console import Display
from and_dist.utils.output_folders import check_results, names_with_sums, publish_results
from and_dist.utils.owned_files import IsOurs, always, never, read_json, sum_of, write_file

MAY_CHANGE = ("discovery", "curriculum", "objective")
"""The config sections that overrides may change, besides those that a resumed run may change."""
SUMMARY, TABLES = "summary.json", ("neighbours.npy", "entropies.npy", "anchors.npy")
FILES = (SUMMARY, *TABLES)
"""The names of all files that a discovery writes."""


def names_of_discovery(folder: Path) -> Container[str] | None:
    """Return the names of an earlier discovery's files, or None if the folder holds no summary."""
    summary = read_json(folder / SUMMARY)
    if not isinstance(summary, dict) or not {"run", "checkpoint", "round", "rows"} <= set(summary):
        return None
    if not isinstance(summary.get("files", {}), dict):
        return None
    if "files" not in summary:  # earlier revisions did not list them
        return FILES
    return {SUMMARY, *names_with_sums(folder, summary["files"])}


@dataclass(frozen=True)
class DiscoverOptions:
    """Hold the checked inputs of one discovery."""

    opened: OpenedCheckpoint
    round_index: int
    out: Path
    may_replace: IsOurs | None
    """A test for files in `out` that may be replaced; with None, `out` is replaced as a whole, and
    only if this program wrote all of it."""

    @property
    def config(self) -> Config:
        """Return the run's config with the overrides applied."""
        return self.opened.config


def plan_discovery(
    opened: OpenedCheckpoint,
    round_index: int | None,
    out: Path | None,
    world_size: int,
    force: bool = False,
) -> DiscoverOptions:
    """Check the inputs of a discovery and return them; write nothing.

    Without `round_index` the round after the checkpoint's is discovered. Raise ValueError for a
    round, search, memory limit or output folder that is impossible.
    """
    config, name = opened.config, opened.checkpoint.name
    rounds = config.curriculum.rounds
    if round_index is None:
        round_index = min(opened.state["progress"]["round_index"] + 1, rounds)
    num_anchors(opened.num_rows, round_index, rounds, config.curriculum.share)
    check_discovery(
        opened.num_rows,
        config.encoder.feature_dim,
        world_size,
        config.curriculum.neighbours,
        config.discovery.search,
        config.discovery.memory_bytes,
    )
    may_replace = always if force else never if out else None
    folder = out or opened.run / f"discovery/{name}-round{round_index}"
    check_results(folder, FILES, may_replace, names_of_discovery)
    return DiscoverOptions(opened, round_index, folder, may_replace)


def run_discovery(options: DiscoverOptions, world: World, display: Display) -> None:
    """Run the discovery of training on any number of ranks; the coordinator writes the results.

    Raise ValueError if the checkpoint is corrupt.
    """
    config = options.config
    refuse_corrupt(options.opened, world)
    bank, previous_A = load_bank(options.opened, world), _previous_anchors(options, world)
    started = time.monotonic()
    with display.phase(f"discovery of round {options.round_index}") as advance:
        found = discover(
            bank,
            world,
            options.round_index,
            config.curriculum.rounds,
            config.curriculum.neighbours,
            config.objective.temperature,
            config.discovery.search,
            share=config.curriculum.share,
            options=SearchOptions(config.discovery.recall, config.discovery.memory_bytes),
            progress=advance,
        )
    seconds = time.monotonic() - started

    def describe_and_write() -> None:
        figures = describe_neighbourhoods(found, previous_A, _labels(options, display))
        _write(options, found, {"seconds": seconds, "ranks": world.size, **figures})
        display.say(in_one_line(options.round_index, figures, seconds))
        display.say(f"written to {options.out}")

    on_coordinator(world, f"writing {options.out}", describe_and_write)


def _previous_anchors(options: DiscoverOptions, world: World) -> Tensor:
    """Return the anchors [A] of the round in which the checkpoint was saved."""
    anchors_A = torch.empty(options.opened.state["num_anchors"], dtype=torch.int64)
    load_tensors(options.opened.checkpoint, {"anchors": anchors_A}, world)
    return anchors_A


def _labels(options: DiscoverOptions, display: Display) -> Tensor | None:
    """Return the training labels [N], or None if they are missing or the images have changed."""
    images = find_images(options.opened, "labels", display.say)
    return None if images is None or images.labels_N is None else torch.tensor(images.labels_N)


def _write(options: DiscoverOptions, found: Neighbourhoods, figures: dict[str, Any]) -> None:
    """Write the summary and the three tables to the output folder."""
    config = options.config
    summary = {
        "run": config.name,
        "checkpoint": options.opened.checkpoint.name,
        "round": options.round_index,
        "curriculum": config.curriculum.model_dump(mode="json"),
        "temperature": config.objective.temperature,
        "discovery": config.discovery.model_dump(mode="json"),
        "rows": options.opened.num_rows,
        **figures,
    }
    tables = found.neighbours_NK, found.entropy_N, found.anchors_A
    with publish_results(options.out, FILES, options.may_replace, names_of_discovery) as folder:
        for name, table in zip(TABLES, tables, strict=True):
            np.save(folder / name, table.cpu().numpy())
        summary["files"] = {name: sum_of(folder / name) for name in TABLES}
        write_file(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
