"""Write the features of any images, and the images' names beside them.

N images, M of this rank, D feature.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from and_dist.checkpoint.reader import OpenedCheckpoint, load_encoder, refuse_corrupt
from and_dist.data.index import LabelledImages
from and_dist.data.loader import FeatureLoader
from and_dist.data.unreadable import BadImages
from and_dist.distributed.collectives import gather_objects, raise_on_all_ranks
from and_dist.distributed.world import World
from and_dist.evaluation.features import extract_features
from and_dist.evaluation.image_reader import short_name
from and_dist.method.memory_bank import all_shards, shard_range
from and_dist.runs.console import Display
from and_dist.utils.owned_files import IsOurs, NewFile, check_output, open_shared, write_file

IMAGES_PER_BATCH = 256


Policy = Literal["stop", "skip"]


def check_features_file(out: Path, may_replace: IsOurs) -> None:
    if out.suffix != ".npy":
        raise ValueError(f"--out {out}: right is a name that ends in .npy")
    for file in (out, names_file(out)):
        check_output(file, "--out", may_replace)


class FeaturesFile:
    """An .npy file that all ranks write to; it has its name once it is whole."""

    def __init__(self, path: Path, count: int, dim: int) -> None:
        self.path = path
        self._bytes_per_row = 4 * dim
        buffer = io.BytesIO()
        about = {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}
        np.lib.format.write_array_header_1_0(buffer, about)
        self._header = buffer.getvalue()
        self._new: NewFile | None = None

    @contextmanager
    def begin(self, world: World, may_replace: IsOurs) -> Iterator[Path]:
        """Begin the file, on every rank, and give the name that it has until it is whole."""
        name = Path()
        with raise_on_all_ranks(world, f"making {self.path}"):
            if world.is_coordinator:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._new = NewFile(self.path, may_replace)
                self._new.file.write(self._header)
                self._new.file.flush()
                name = self._new.temporary
        try:
            yield gather_objects(world, name)[0]
        except BaseException:
            if self._new is not None:
                self._new.discard()
            raise

    def write(self, temporary: Path, start: int, features_MD: Tensor) -> None:
        """Not by a map into memory, which ends the process where a disk is full."""
        with open_shared(temporary) as file:
            file.seek(len(self._header) + start * self._bytes_per_row)
            file.write(features_MD.cpu().numpy().astype("<f4").data)

    def finish(self) -> None:
        """Give the file its name, on the coordinator, once all have written."""
        assert self._new is not None
        self._new.publish()


def embed_images(
    opened: OpenedCheckpoint,
    images: LabelledImages,
    policy: Policy,
    out: Path,
    may_replace: IsOurs,
    world: World,
    display: Display,
) -> None:
    """Features [N, D] of all images into an .npy file, and their names beside it; under `skip`
    zeros for what cannot be decoded. Every rank writes its own rows."""
    refuse_corrupt(opened, world)
    config, count = opened.config, len(images.index)
    dim = config.encoder.feature_dim
    bad = BadImages(images.index, policy, display.say)
    loader = FeatureLoader(images.index, config.data, IMAGES_PER_BATCH, world.device, bad)
    start, stop = shard_range(count, world.rank, world.size)
    (_, longest), *_ = all_shards(count, world.size)
    file = FeaturesFile(out, count, dim)
    with file.begin(world, may_replace) as temporary:
        with display.phase("features") as advance:
            features_MD = extract_features(
                load_encoder(opened, world), loader, start, stop, dim, longest, advance
            )
        with raise_on_all_ranks(world, f"writing {out}"):
            file.write(temporary, start, features_MD)
        reasons = {
            row: why for found in gather_objects(world, bad.reasons) for row, why in found.items()
        }
        with raise_on_all_ranks(world, f"writing {names_file(out)}"):
            if world.is_coordinator:
                about = _describe_names(opened, images, reasons)
                write_file(names_file(out), json.dumps(about, indent=0) + "\n", may_replace)
                file.finish()
    zeros = f", {len(reasons)} of zeros" if reasons else ""
    display.say(f"{count:,} features in {out}{zeros}, names in {names_file(out)}")


def names_file(out: Path) -> Path:
    return out.with_suffix(".json")


def _describe_names(
    opened: OpenedCheckpoint, images: LabelledImages, reasons: dict[int, str]
) -> dict[str, Any]:
    return {
        "run": opened.config.name,
        "checkpoint": opened.checkpoint.name,
        "unreadable": {short_name(images.index, row): why for row, why in sorted(reasons.items())},
        "left_out": images.left_out,
        "names": [short_name(images.index, row) for row in range(len(images.index))],
    }
