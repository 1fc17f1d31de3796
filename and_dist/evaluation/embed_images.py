"""Write the features of any images to a file, and their names to a second one.

N images, M images of this rank, D feature.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from and_dist.checkpoint.reader import OpenedCheckpoint, load_encoder, refuse_corrupt
from and_dist.data.index import LabelledImages
from and_dist.data.loader import FeatureLoader
from and_dist.data.unreadable import BadImages
from and_dist.distributed.collectives import (
    gather_objects,
    on_coordinator,
    raise_on_all_ranks,
)
from and_dist.distributed.world import World
from and_dist.evaluation.features import extract_features
from and_dist.evaluation.image_reader import short_name
from and_dist.method.memory_bank import shard_range
from and_dist.runs.console import Display
from and_dist.utils.disk_errors import naming_disk
from and_dist.utils.output_folders import all_or_none
from and_dist.utils.owned_files import (
    IsOurs,
    NewFile,
    check_output,
    make_folder,
    open_shared,
    write_file,
)

IMAGES_PER_BATCH = 256
Policy = Literal["stop", "skip"]
"""The reaction to an image that cannot be decoded: raise an error, or write a feature of zeros."""


@dataclass(frozen=True)
class Output:
    """Name the file of features, and the existing files that it may replace."""

    features: Path
    may_replace: IsOurs

    @property
    def names(self) -> Path:
        """Return the path of the JSON file with the images' names."""
        return self.features.with_suffix(".json")

    def check(self) -> None:
        """Raise ValueError unless both files have valid names and may be written."""
        if self.features.suffix != ".npy":
            raise ValueError(f"--out {self.features}: the name has to end in .npy")
        for file in (self.features, self.names):
            check_output(file, "--out", self.may_replace)


class FeaturesFile:
    """Write an .npy file together with all ranks; it takes its name once it is complete."""

    def __init__(self, path: Path, count: int, dim: int) -> None:
        """Prepare the header of float32 features [count, dim]; create no file."""
        self.path = path
        self._bytes_per_row = 4 * dim
        buffer = io.BytesIO()
        about = {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}
        np.lib.format.write_array_header_1_0(buffer, about)
        self._header = buffer.getvalue()
        self._new: NewFile | None = None

    @contextmanager
    def begin(self, world: World, may_replace: IsOurs) -> Iterator[Path]:
        """Create the file on the coordinator and yield its temporary name on every rank.

        If the block raises, the coordinator removes the file.
        """

        def create() -> str:
            make_folder(self.path.parent)
            with naming_disk(self.path):
                self._new = NewFile(self.path, may_replace)
                self._new.file.write(self._header)
                self._new.file.flush()
            return str(self._new.temporary)

        try:
            yield Path(on_coordinator(world, f"making {self.path}", create))
        except BaseException:
            if self._new is not None:
                self._new.discard()
            raise

    def write(self, temporary: Path, start: int, features_MD: Tensor) -> None:
        """Write this rank's features [M, D] from row `start` on."""
        # A memory map would end the process on a full disk, where a write raises OSError.
        with naming_disk(self.path, features_MD.nbytes), open_shared(temporary) as file:
            file.seek(len(self._header) + start * self._bytes_per_row)
            file.write(features_MD.cpu().numpy().astype("<f4").data)

    def finish(self) -> None:
        """Give the file its name; only the coordinator calls this, once all ranks have written."""
        assert self._new is not None
        self._new.publish()


def embed_images(
    opened: OpenedCheckpoint,
    images: LabelledImages,
    policy: Policy,
    output: Output,
    world: World,
    display: Display,
) -> None:
    """Write features [N, D] of all images to an .npy file and their names to a JSON file.

    Every rank writes its own rows. Under `skip` an image that cannot be decoded gets zeros. Raise
    RuntimeError for such an image under `stop` and for too many of them under `skip`, and
    ValueError if the checkpoint is corrupt.
    """
    refuse_corrupt(opened, world)
    config, count = opened.config, len(images.index)
    dim = config.encoder.feature_dim
    bad = BadImages(images.index, policy, display.say)
    loader = FeatureLoader(images.index, config.data, IMAGES_PER_BATCH, world.device, bad)
    file = FeaturesFile(output.features, count, dim)
    with file.begin(world, output.may_replace) as temporary:
        with display.phase("features") as advance:
            encoder = load_encoder(opened, world)
            features_MD = extract_features(encoder, loader, count, dim, world, advance)
        with raise_on_all_ranks(world, f"writing {output.features}"):
            start, _ = shard_range(count, world.rank, world.size)
            file.write(temporary, start, features_MD)
        reasons = {
            row: why
            for found in gather_objects(world, [*bad.reasons.items()])
            for row, why in found
        }

        def write_names() -> None:
            about = json.dumps(_describe_names(opened, images, reasons), indent=0) + "\n"
            with all_or_none() as make:
                make(output.names, lambda: write_file(output.names, about, output.may_replace))
                file.finish()

        on_coordinator(world, f"writing {output.names}", write_names)
    zeros = f", {len(reasons)} of zeros" if reasons else ""
    display.say(f"{count:,} features in {output.features}{zeros}, names in {output.names}")


def _describe_names(
    opened: OpenedCheckpoint, images: LabelledImages, reasons: dict[int, str]
) -> dict[str, Any]:
    """Return the content of the names file, in the order of the rows."""
    return {
        "run": opened.config.name,
        "checkpoint": opened.checkpoint.name,
        "unreadable": {short_name(images.index, row): why for row, why in sorted(reasons.items())},
        "left_out": images.left_out,
        "names": [short_name(images.index, row) for row in range(len(images.index))],
    }
