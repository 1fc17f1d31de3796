"""Open a checkpoint of a run for use by discover, evaluate, export and others.

S rows of a shard, D feature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from and_dist.checkpoint.bank_reader import StoredBank
from and_dist.checkpoint.names import list_checkpoints
from and_dist.checkpoint.storage import (
    find_corruption,
    load_tensors,
    read_checkpoint,
    read_latest,
)
from and_dist.config.comparison import PATHS, differing_keys
from and_dist.config.schema import Config
from and_dist.data.datasets import load_train
from and_dist.data.index import LabelledImages
from and_dist.data.unreadable import BadImages
from and_dist.distributed.collectives import gather_objects
from and_dist.distributed.world import World
from and_dist.method.memory_bank import MemoryBank, shard_range
from and_dist.models.encoders import Encoder, to_device
from and_dist.models.shapes import build_unfilled
from and_dist.runs.folder import config_of
from and_dist.utils.owned_files import kind_of


@dataclass(frozen=True)
class OpenedCheckpoint:
    """Holds a checkpoint that was opened; no tensor has been loaded yet."""

    run: Path
    config: Config
    checkpoint: Path
    state: dict[str, Any]

    @property
    def num_rows(self) -> int:
        """Return the number of images it was trained on."""
        return int(self.state["images"]["rows"])

    @property
    def evaluation(self) -> Path:
        """Return the folder for what `and-dist evaluate` finds."""
        return self.run / "evaluation" / self.checkpoint.name

    @property
    def weights(self) -> str:
        """Return a short fingerprint of the weights, from the sums of the checkpoint's files."""
        return hashlib.sha256(json.dumps(self.state["files"]).encode()).hexdigest()[:16]


def open_checkpoint(
    run: Path,
    checkpoint: str | None = None,
    overrides: Sequence[str] = (),
    may_change: Sequence[str] = (),
) -> OpenedCheckpoint:
    """Open the named checkpoint, or the newest.

    Raise ValueError where there is none, where it is another run's, and for overrides that change
    what was trained; sections and keys in `may_change` may be changed.
    """
    config = config_of(run, overrides)
    if others := _differing(config, config_of(run).model_dump(mode="json"), may_change):
        raise ValueError(f"{run} was trained otherwise: {others}")
    folder = run / "checkpoints"
    if checkpoint and Path(checkpoint).name != checkpoint:
        raise ValueError(
            f"--checkpoint {checkpoint} is no name of a checkpoint of {run}, which has: "
            f"{', '.join(sorted(list_checkpoints(folder))) or 'none'}"
        )
    needs = "progress"  # of training
    found = (
        read_checkpoint(folder / checkpoint, needs) if checkpoint else read_latest(folder, needs)
    )
    if found is None:
        raise ValueError(f"{run} has no checkpoint yet")
    opened = OpenedCheckpoint(run, config, *found)
    if others := _differing(config, opened.state["config"], (*may_change, *PATHS)):
        raise ValueError(f"{opened.checkpoint} is of another run: {others}")
    files = sorted(opened.state["files"])
    if lost := [name for name in files if kind_of(opened.checkpoint / name) != "file"]:
        raise ValueError(f"{opened.checkpoint} is damaged: it lacks {', '.join(lost[:3])}")
    if (num_rows := StoredBank(opened.checkpoint).num_rows) != opened.num_rows:
        raise ValueError(f"{opened.checkpoint} has {num_rows:,} rows, and says {opened.num_rows:,}")
    return opened


def _differing(config: Config, theirs: Mapping[str, Any], may_change: Sequence[str]) -> str:
    """Return the keys that differ and may not, as one text."""
    return "; ".join(
        text
        for text in differing_keys(config, theirs)
        if not {text.partition(":")[0], text.partition(".")[0]} & set(may_change)
    )


def refuse_corrupt(opened: OpenedCheckpoint, world: World) -> None:
    """Raise ValueError for a corrupt checkpoint, or if ranks have opened different ones."""
    all_opened = gather_objects(world, (opened.checkpoint.name, opened.weights))
    for rank, other in enumerate(all_opened):
        if other != all_opened[0]:
            raise ValueError(
                f"rank 0 has opened {all_opened[0][0]}, rank {rank} {other[0]}: while {opened.run} "
                "is being trained, --checkpoint has to say which"
            )
    if damage := find_corruption(opened.checkpoint, world):
        raise ValueError(f"{damage}; --checkpoint takes another")


def find_images(
    opened: OpenedCheckpoint, what: str, say: Callable[[str], None]
) -> LabelledImages | None:
    """Return the images it was trained on, if they are still there.

    Otherwise say why `what` cannot be had, and return None.
    """
    data = opened.config.data
    try:
        images = load_train(data)
    except (ValueError, OSError) as error:
        say(f"no {what}: {error}")
        return None
    if not images.index.holds(opened.state["images"]["content_hash"]):
        say(f"no {what}: data.train={data.train} holds other images than those trained on")
        return None
    return images


def known_bad(opened: OpenedCheckpoint, images: LabelledImages) -> BadImages:
    """Return the images that training left out, so that they are left out again."""
    bad = BadImages(images.index, opened.config.data.bad_images, left_out=images.left_out)
    bad.reasons = {int(row): why for row, why in opened.state["bad_images"].items()}
    return bad


def load_encoder(opened: OpenedCheckpoint, world: World) -> Encoder:
    """Return the encoder, in evaluation mode."""
    encoder = build_unfilled(opened.config.encoder, opened.config.data.image_size)
    tensors = {f"encoder.{name}": t for name, t in encoder.state_dict().items()}
    load_tensors(opened.checkpoint, tensors, world)
    return to_device(encoder, world.device).eval()


def load_bank(opened: OpenedCheckpoint, world: World) -> MemoryBank:
    """Return this rank's shard of the bank."""
    config, num_rows = opened.config, opened.num_rows
    start, stop = shard_range(num_rows, world.rank, world.size)
    features_SD = torch.zeros(
        stop - start,
        config.encoder.feature_dim,
        dtype=getattr(torch, config.bank.dtype),
        device=world.device,
    )
    bank = MemoryBank(features_SD, start, num_rows, config.bank.update_rate)
    load_tensors(opened.checkpoint, {}, world, bank)
    return bank
