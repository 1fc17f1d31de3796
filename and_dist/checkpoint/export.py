"""Export the encoder of a checkpoint for other programs, with a card about it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Container
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from and_dist.checkpoint.card_scripts import Format, classifier_of, is_network_of
from and_dist.checkpoint.model_card import CARD, describe_model
from and_dist.checkpoint.reader import (
    OpenedCheckpoint,
    load_encoder,
    open_checkpoint,
    refuse_corrupt,
)
from and_dist.config.schema import Config
from and_dist.distributed.world import World
from and_dist.models.encoders import Encoder
from and_dist.utils.output_folders import check_results, names_with_sums, publish_results
from and_dist.utils.owned_files import IsOurs, always, never, sum_of, write_file

FILES: dict[Format, str] = {
    "torchvision": "encoder.pth",
    "timm": "encoder.safetensors",
    "safetensors": "encoder.safetensors",
    "onnx": "encoder.onnx",
}


@dataclass(frozen=True)
class Export:
    """Holds what is to be exported, all of it checked."""

    opened: OpenedCheckpoint
    format: Format
    has_head: bool
    out: Path
    may_replace: IsOurs | None
    """Recognises files in `out` to replace; None replaces the folder, if all of it is ours."""

    @property
    def config(self) -> Config:
        """Return the config of the run."""
        return self.opened.config

    @property
    def file(self) -> Path:
        """Return the file of the encoder."""
        return self.out / FILES[self.format]

    @property
    def names(self) -> tuple[str, str]:
        """Return the names of both files."""
        return CARD, self.file.name


def plan_export(
    run: Path,
    checkpoint: str | None,
    format_name: str,
    has_head: bool,
    out: Path | None,
    force: bool = False,
) -> Export:
    """Return what is to be exported; raise ValueError for what cannot be; write nothing."""
    chosen = next((known for known in FILES if known == format_name), None)
    if chosen is None:
        raise ValueError(f"--format {format_name} is not one of: {', '.join(FILES)}")
    opened = open_checkpoint(run, checkpoint)
    config = opened.config
    name = config.encoder.name
    if chosen in ("torchvision", "timm") and not is_network_of(chosen, name):
        raise ValueError(
            f"encoder.name={name} is no model of {chosen}'s; safetensors and onnx take every "
            "encoder"
        )
    if chosen == "onnx" and not (find_spec("onnx") and find_spec("onnxscript")):
        raise ValueError("--format onnx needs the packages onnx and onnxscript: pip install them")
    head = "" if has_head else "-headless"
    default = run / "export" / f"{opened.checkpoint.name}-{chosen}{head}"
    may_replace = always if force else never if out else None
    export = Export(opened, chosen, has_head, out or default, may_replace)
    check_results(export.out, export.names, may_replace, names_of_export)
    return export


def run_export(export: Export, world: World) -> None:
    """Write encoder and card, in a world of one."""
    refuse_corrupt(export.opened, world)
    encoder = load_encoder(export.opened, world)
    with publish_results(export.out, export.names, export.may_replace, names_of_export) as folder:
        file = folder / export.file.name
        if export.format == "torchvision":
            # torch's own writer of files ends the process if the disk is full.
            content = io.BytesIO()
            torch.save(under_their_names(encoder, export.has_head), content)
            write_file(file, content.getvalue())
        elif export.format == "timm":
            weights = under_their_names(encoder, export.has_head)
            write_file(file, save(weights, _metadata(export)))
        elif export.format == "safetensors":
            write_file(file, save(_plain_weights(encoder, export.has_head), _metadata(export)))
        else:
            _write_onnx(encoder, export, file)
        card = describe_model(
            export.opened, encoder, export.format, export.has_head, file.name, sum_of(file)
        )
        write_file(folder / CARD, card)


def names_of_export(folder: Path) -> Container[str] | None:
    """Return the names of an earlier export's files by its card; None where none of ours lies."""
    pattern = (
        r"(?s)# [^\n]*\n\nTrained with and-dist by .*?\n- file: `(encoder\.\w+)`[^\n]*\n"
        r"(?:- sha256: `(\w+)`)?"
    )
    try:
        found = re.match(pattern, (folder / CARD).read_text())
    except (OSError, ValueError):
        return None
    if found is None:
        return None
    name, known = found.groups()
    # Cards of earlier revisions do not say what the file's sum is.
    return {CARD, name} if known is None else {CARD, *names_with_sums(folder, {name: known})}


def under_their_names(encoder: Encoder, has_head: bool) -> dict[str, Tensor]:
    """Return a state dict under the names of the network's authors; our head is its last layer."""
    weights = {k.removeprefix("trunk."): v for k, v in _plain_weights(encoder, False).items()}
    if has_head:
        head = encoder.head.state_dict()
        weights |= {f"{classifier_of(encoder)}.{k}": v.contiguous() for k, v in head.items()}
    return weights


class Pixels(nn.Module):
    """Maps normalised images to features of unit norm, or to what the trunk gives."""

    def __init__(self, encoder: Encoder, has_head: bool) -> None:
        """Take the encoder's trunk, and its head if that is wanted."""
        super().__init__()
        self.trunk = encoder.trunk
        self.head = encoder.head if has_head else None

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of some images."""
        features: Tensor = self.trunk(images)
        return features if self.head is None else functional.normalize(self.head(features), dim=1)


def _plain_weights(encoder: Encoder, has_head: bool) -> dict[str, Tensor]:
    """Return contiguous weights, with or without the head's."""
    weights = encoder.state_dict()
    return {k: v.contiguous() for k, v in weights.items() if has_head or k.startswith("trunk.")}


def _metadata(export: Export) -> dict[str, str]:
    """Return what the file says about itself; safetensors takes text alone."""
    return {
        "format": "pt",
        "config": json.dumps(export.config.model_dump(mode="json")),
        "checkpoint": export.opened.checkpoint.name,
        "content_hash": export.opened.state["images"]["content_hash"],
    }


def _write_onnx(encoder: Encoder, export: Export, file: Path) -> None:
    """Write the encoder as ONNX, for any number of images."""
    side = export.config.data.image_size
    torch.onnx.export(
        Pixels(encoder, export.has_head).eval(),
        (torch.zeros(2, 3, side, side),),
        str(file),
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
