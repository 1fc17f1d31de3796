"""`and-dist discover RUN`: one discovery from a checkpoint, alone, written down for study."""

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

from and_dist.checkpoint.reader import Trained, find_images, load_bank, open_trained, refuse_damaged
from and_dist.checkpoint.storage import load_tensors
from and_dist.config.schema import Config
from and_dist.distributed.collectives import failing_together
from and_dist.distributed.world import World
from and_dist.evaluation.neighbourhood_stats import describe_neighbourhoods, in_one_line
from and_dist.method.curriculum import num_anchors
from and_dist.method.discovery import check_discovery, discover
from and_dist.method.neighbour_table import Neighbourhoods
from and_dist.runs.console import Display
from and_dist.utils.output_folders import check_results, names_with_sums, publish_results
from and_dist.utils.owned_files import IsOurs, always, never, read_json, sum_of, write_file

MAY_CHANGE = ("discovery", "curriculum", "objective")
"""Sections a study may change, besides those a resumed run may."""
SUMMARY, TABLES = "summary.json", ("neighbours.npy", "entropies.npy", "anchors.npy")
FILES = (SUMMARY, *TABLES)


def names_of_discovery(folder: Path) -> Container[str] | None:
    """Return the names of an earlier discovery's files; None where no summary of one lies."""
    summary = read_json(folder / SUMMARY)
    if not isinstance(summary, dict) or not {"run", "checkpoint", "round", "rows"} <= set(summary):
        return None
    if "files" not in summary:  # as it was written before it named them
        return FILES
    return {SUMMARY, *names_with_sums(folder, summary["files"])}


@dataclass(frozen=True)
class Study:
    """What is to be discovered again, all of it checked."""

    trained: Trained
    round_index: int
    out: Path
    may_replace: IsOurs | None
    """Says which files in `out` may be replaced; None replaces it whole, if it is all ours."""

    @property
    def config(self) -> Config:
        return self.trained.config


def plan_study(
    run: Path,
    checkpoint: str | None,
    round_index: int | None,
    out: Path | None,
    overrides: list[str],
    world_size: int,
    force: bool = False,
) -> Study:
    """ValueError for what cannot be; nothing is written."""
    trained = open_trained(run, checkpoint, overrides, MAY_CHANGE)
    config, name = trained.config, trained.checkpoint.name
    rounds = config.curriculum.rounds
    if round_index is None:
        round_index = min(trained.state["progress"]["round_index"] + 1, rounds)
    num_anchors(trained.num_rows, round_index, rounds)
    check_discovery(
        trained.num_rows,
        config.encoder.feature_dim,
        world_size,
        config.curriculum.neighbours,
        config.discovery.search,
        config.discovery.memory_bytes,
    )
    may_replace = always if force else never if out else None
    folder = out or run / f"discovery/{name}-round{round_index}"
    check_results(folder, FILES, may_replace, names_of_discovery)
    return Study(trained, round_index, folder, may_replace)


def run_study(study: Study, world: World, display: Display) -> None:
    """The same discovery as inside training, at any number of ranks."""
    config = study.config
    refuse_damaged(study.trained, world)
    bank, previous_S = load_bank(study.trained, world), _previous_anchors(study, world)
    started = time.monotonic()
    with display.phase(f"discovery of round {study.round_index}") as advance:
        found = discover(
            bank,
            world,
            study.round_index,
            config.curriculum.rounds,
            config.curriculum.neighbours,
            config.objective.temperature,
            config.discovery.search,
            config.discovery.recall,
            config.discovery.memory_bytes,
            advance,
        )
    seconds = time.monotonic() - started
    with failing_together(world, f"writing {study.out}"):
        if world.is_coordinator:
            figures = describe_neighbourhoods(found, previous_S, _labels(study, display))
            _write(study, found, {"seconds": seconds, "ranks": world.size, **figures})
            display.say(in_one_line(study.round_index, figures, seconds))
            display.say(f"written to {study.out}")


def _previous_anchors(study: Study, world: World) -> Tensor:
    """Of the round the checkpoint was saved in."""
    anchors_S = torch.empty(study.trained.state["num_anchors"], dtype=torch.int64)
    load_tensors(study.trained.checkpoint, {"anchors": anchors_S}, world)
    return anchors_S


def _labels(study: Study, display: Display) -> Tensor | None:
    """Of the images the run was trained on, if they are still there."""
    images = find_images(study.trained, "labels", display.say)
    return None if images is None or images.labels_N is None else torch.tensor(images.labels_N)


def _write(study: Study, found: Neighbourhoods, figures: dict[str, Any]) -> None:
    config = study.config
    summary = {
        "run": config.name,
        "checkpoint": study.trained.checkpoint.name,
        "round": study.round_index,
        "curriculum": config.curriculum.model_dump(mode="json"),
        "temperature": config.objective.temperature,
        "discovery": config.discovery.model_dump(mode="json"),
        "rows": study.trained.num_rows,
        **figures,
    }
    tables = found.neighbours_NK, found.entropy_N, found.anchors_S
    with publish_results(study.out, FILES, study.may_replace, names_of_discovery) as folder:
        for name, table in zip(TABLES, tables, strict=True):
            np.save(folder / name, table.cpu().numpy())
        summary["files"] = {name: sum_of(folder / name) for name in TABLES}
        write_file(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
