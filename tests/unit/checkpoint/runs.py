"""Run folders with a checkpoint, as training leaves them, in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from and_dist.checkpoint.storage import save_checkpoint
from and_dist.config.load import load_config
from and_dist.config.schema import Config
from and_dist.distributed.world import World
from and_dist.method.memory_bank import MemoryBank, shard_range
from and_dist.models.encoders import build_encoder

ROWS = 5


def write_run(run: Path, *overrides: str) -> Config:
    run.mkdir(parents=True, exist_ok=True)
    config = load_config(["configs/debug.yaml"], ["encoder.feature_dim=16", *overrides])
    (run / "metrics.jsonl").write_text("")
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return config


def state_of(config: Config, epochs: int = 3, round_index: int = 1) -> dict[str, Any]:
    return {
        "config": config.model_dump(mode="json"),
        "images": {"rows": ROWS, "content_hash": "0123abcd"},
        "progress": {"round_index": round_index, "epochs": epochs, "step": 0},
        "num_anchors": 0,
        "losses": {},
        "skipped": [],
        "metrics_bytes": 0,
        "bad_images": {},
    }


def save_here(world: World, run: Path, config: Config, name: str) -> None:
    """A bank of ones, and the encoder that the seed 7 draws."""
    start, stop = shard_range(ROWS, world.rank, world.size)
    bank = MemoryBank(torch.ones(stop - start, 16), start, ROWS, 0.5)
    weights = build_encoder(config.encoder, 7).state_dict()
    tensors = {f"encoder.{key}": tensor for key, tensor in weights.items()}
    save_checkpoint(run / "checkpoints", name, tensors, state_of(config), world, bank)
