"""`and-dist discover RUN`: one discovery from a checkpoint, alone, written down for study."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from and_dist.bank import BankShard, shard_range
from and_dist.checkpoint import (
    as_sharded,
    find_damage,
    load_tensors,
    local_rows,
    read_checkpoint,
    read_latest,
)
from and_dist.collectives import failing_together
from and_dist.config import Config, differing_keys, load_config
from and_dist.curriculum import Neighbourhoods, num_anchors
from and_dist.data.datasets import load_images
from and_dist.discovery import check_discovery, discover
from and_dist.display import Display
from and_dist.evaluation.neighbourhoods import describe_neighbourhoods, in_one_line
from and_dist.plain_yaml import read_yaml
from and_dist.run_folder import replace_file
from and_dist.world import World

MAY_CHANGE = ("discovery", "curriculum", "objective")
"""Sections a study may change, besides those a resumed run may."""


@dataclass(frozen=True)
class Study:
    """What is to be discovered again, all of it checked."""

    config: Config
    checkpoint: Path
    state: dict[str, Any]
    round_index: int
    out: Path

    @property
    def num_rows(self) -> int:
        return int(self.state["images"]["rows"])


def plan_study(
    run: Path,
    checkpoint: str | None,
    round_index: int | None,
    out: Path | None,
    overrides: list[str],
    world_size: int,
) -> Study:
    """ValueError for what cannot be; nothing is written."""
    if not (run / "config.yaml").exists():
        raise ValueError(f"{run} is no run folder: it has no config.yaml")
    config = load_config([run / "config.yaml"], overrides)
    differences = differing_keys(config, read_yaml(run / "config.yaml"))
    others = [text for text in differences if text.split(".")[0] not in MAY_CHANGE]
    if others:
        raise ValueError(f"the bank of {run} was trained otherwise: {'; '.join(others)}")
    folder = run / "checkpoints"
    found = read_checkpoint(folder / checkpoint) if checkpoint else read_latest(folder)
    if found is None:
        raise ValueError(f"{run} has no checkpoint yet")
    path, state = found
    rounds = config.curriculum.rounds
    if round_index is None:
        round_index = min(state["progress"]["round_index"] + 1, rounds)
    study = Study(
        config, path, state, round_index, out or run / f"discovery/{path.name}-round{round_index}"
    )
    num_anchors(study.num_rows, round_index, rounds)
    check_discovery(
        study.num_rows, config.encoder.feature_dim, world_size, config.curriculum.neighbours,
        config.discovery.search, config.discovery.memory_bytes,
    )  # fmt: skip
    return study


def run_study(study: Study, world: World, display: Display) -> None:
    """The same discovery as inside training, at any number of ranks."""
    config = study.config
    if damage := find_damage(study.checkpoint, world):
        raise ValueError(f"{damage}; --checkpoint takes another")
    bank, previous_S = _load_bank(study, world)
    started = time.monotonic()
    with display.phase(f"discovery of round {study.round_index}") as advance:
        found = discover(
            bank, world, study.round_index, config.curriculum.rounds,
            config.curriculum.neighbours, config.objective.temperature, config.discovery.search,
            config.discovery.recall, config.discovery.memory_bytes, advance,
        )  # fmt: skip
    seconds = time.monotonic() - started
    with failing_together(world, f"writing {study.out}"):
        if world.is_coordinator:
            figures = describe_neighbourhoods(found, previous_S, _labels(study, display))
            _write(study, found, {"seconds": seconds, "ranks": world.size, **figures})
            display.say(in_one_line(study.round_index, figures, seconds))
            display.say(f"written to {study.out}")


def _load_bank(study: Study, world: World) -> tuple[BankShard, Tensor]:
    """The bank, and the anchors of the round it was saved in."""
    config, num_rows = study.config, study.num_rows
    start, stop = shard_range(num_rows, world.rank, world.size)
    features_SD = torch.zeros(
        stop - start, config.encoder.feature_dim,
        dtype=getattr(torch, config.bank.dtype), device=world.device,
    )  # fmt: skip
    bank = BankShard(features_SD, start, num_rows, config.bank.update_rate)
    anchors_S = torch.empty(study.state["num_anchors"], dtype=torch.int64)
    tensors = {"bank": as_sharded(bank, world), "anchors": anchors_S}
    load_tensors(study.checkpoint, tensors, world)
    bank.features_SD.copy_(local_rows(tensors["bank"]))
    return bank, anchors_S


def _labels(study: Study, display: Display) -> Tensor | None:
    """Of the images the run was trained on, if they are still there."""
    data = study.config.data
    try:
        images = load_images(data.train, data.limit, "data.train", data.bad_images)
    except (ValueError, OSError) as error:
        display.say(f"no labels: {error}")
        return None
    if images.index.content_hash != study.state["images"]["content_hash"]:
        display.say(f"no labels: data.train={data.train} holds other images now")
        return None
    return None if images.labels_N is None else torch.tensor(images.labels_N)


def _write(study: Study, found: Neighbourhoods, figures: dict[str, Any]) -> None:
    study.out.mkdir(parents=True, exist_ok=True)
    np.save(study.out / "neighbours.npy", found.neighbours_NK.cpu().numpy())
    np.save(study.out / "entropies.npy", found.entropy_N.cpu().numpy())
    np.save(study.out / "anchors.npy", found.anchors_S.cpu().numpy())
    config = study.config
    summary = {
        "run": config.name,
        "checkpoint": study.checkpoint.name,
        "round": study.round_index,
        "curriculum": config.curriculum.model_dump(mode="json"),
        "temperature": config.objective.temperature,
        "discovery": config.discovery.model_dump(mode="json"),
        "rows": study.num_rows,
        **figures,
    }
    replace_file(study.out / "summary.json", json.dumps(summary, indent=1) + "\n")
