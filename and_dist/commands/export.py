"""`and-dist export`: the encoder of a checkpoint for other programs, and a card about it."""

from __future__ import annotations

import json
import re
from collections.abc import Container
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from and_dist.checkpoint.reader import Trained, load_encoder, open_trained, refuse_damaged
from and_dist.config.schema import Config
from and_dist.distributed.world import World
from and_dist.models.encoders import Encoder
from and_dist.runs.metrics_file import read_metrics
from and_dist.utils.formatting import percent
from and_dist.utils.output_folders import check_results, names_with_sums, publish_results
from and_dist.utils.owned_files import IsOurs, always, never, sum_of, write_file

Format = Literal["torchvision", "safetensors", "onnx"]
FILES: dict[Format, str] = {
    "torchvision": "encoder.pth",
    "safetensors": "encoder.safetensors",
    "onnx": "encoder.onnx",
}


CARD = "README.md"


@dataclass(frozen=True)
class Export:
    """What is to be written, all of it checked."""

    trained: Trained
    format: Format
    has_head: bool
    out: Path
    may_replace: IsOurs | None
    """Says which files in `out` may be replaced; None replaces it whole, if it is all ours."""

    @property
    def config(self) -> Config:
        return self.trained.config

    @property
    def file(self) -> Path:
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
    """ValueError for what cannot be; nothing is written."""
    chosen = next((known for known in FILES if known == format_name), None)
    if chosen is None:
        raise ValueError(f"--format {format_name} is not one of: {', '.join(FILES)}")
    trained = open_trained(run, checkpoint)
    config = trained.config
    if chosen == "torchvision" and _torchvision_head(config.encoder.name) is None:
        raise ValueError(
            f"encoder.name={config.encoder.name} is no model of torchvision's; "
            "safetensors and onnx take every encoder"
        )
    if chosen == "onnx" and not (find_spec("onnx") and find_spec("onnxscript")):
        raise ValueError("--format onnx needs the packages onnx and onnxscript: pip install them")
    head = "" if has_head else "-headless"
    default = run / "export" / f"{trained.checkpoint.name}-{chosen}{head}"
    may_replace = always if force else never if out else None
    export = Export(trained, chosen, has_head, out or default, may_replace)
    check_results(export.out, export.names, may_replace, names_of_export)
    return export


def run_export(export: Export, world: World) -> None:
    """In a world of one."""
    refuse_damaged(export.trained, world)
    encoder = load_encoder(export.trained, world)
    with publish_results(export.out, export.names, export.may_replace, names_of_export) as folder:
        file = folder / export.file.name
        if export.format == "torchvision":
            name, has_head = export.config.encoder.name, export.has_head
            torch.save(as_torchvision(encoder, name, has_head), file)
        elif export.format == "safetensors":
            save_file(_plain_weights(encoder, export.has_head), file, _metadata(export))
        else:
            _write_onnx(encoder, export, file)
        write_file(folder / CARD, describe_model(export, sum_of(file)))


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


def as_torchvision(encoder: Encoder, name: str, has_head: bool) -> dict[str, Tensor]:
    """A state dict under torchvision's names; our head is its last layer."""
    head = _torchvision_head(name)
    assert head is not None
    weights = {k.removeprefix("trunk."): v for k, v in _plain_weights(encoder, False).items()}
    if has_head:
        weights |= {head + k: v for k, v in encoder.head.state_dict().items()}
    return weights


class Pixels(nn.Module):
    """What leaves as ONNX: normalised images -> features of unit norm, or what the trunk gives."""

    def __init__(self, encoder: Encoder, has_head: bool) -> None:
        super().__init__()
        self.trunk = encoder.trunk
        self.head = encoder.head if has_head else None

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.trunk(images)
        return features if self.head is None else functional.normalize(self.head(features), dim=1)


def describe_model(export: Export, sha256: str) -> str:
    """The card: what it is, how to feed it, what it was trained on and how well it does."""
    config, progress, images = (
        export.config,
        export.trained.state["progress"],
        export.trained.state["images"],
    )
    epochs = config.epochs_of(progress["round_index"])
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).strip()
    paragraphs = [
        f"# {config.name}: {config.encoder.name}",
        f"Trained with and-dist by {_describe_method(config.method)}; checkpoint "
        f"{export.trained.checkpoint.name}, after {progress['epochs']} of {epochs} epochs of round "
        f"{progress['round_index']} of {config.last_round}.",
        f"- file: `{export.file.name}`, {_describe_output(export)}\n"
        f"- sha256: `{sha256}`\n"
        f"- input: {_describe_input(config)}\n"
        f"- trained on: {config.data.train}, {images['rows']:,} images, "
        f"manifest hash `{images['content_hash']}`",
        _how_to_load(export),
        _table_of_rounds(export),
        f"kNN with {config.evaluation.votes_among(images['rows'])}. Consistency and kNN come from "
        "labels that training has not seen; - where there are none.",
        f"## Config\n\n```yaml\n{settings}\n```",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _describe_method(method: str) -> str:
    if method == "and":
        return "Anchor Neighbourhood Discovery, without labels"
    return f"method={method}, " + ("with labels" if method == "supervised" else "without labels")


def _describe_output(export: Export) -> str:
    if export.has_head:
        return f"with its head: features of unit norm, {export.config.encoder.feature_dim} long"
    return "without its head: what the trunk gives"


def _describe_input(config: Config) -> str:
    data = config.data
    cut = f"shorter side to {data.test_resize}, centre crop" if data.test_resize else "whole image"
    return (
        f"RGB in 0..1, {data.image_size} x {data.image_size} ({cut}), minus {list(data.mean)}, "
        f"divided by {list(data.std)}"
    )


def _table_of_rounds(export: Export) -> str:
    lines = ["| round | anchors | consistency % | bank-kNN % | kNN % |", "|---|---|---|---|---|"]
    progress = export.trained.state["progress"]
    is_whole = progress["epochs"] == export.config.epochs_of(progress["round_index"])
    for r in read_metrics(export.trained.run / "metrics.jsonl", "round"):
        if r["round"] < progress["round_index"] or (
            r["round"] == progress["round_index"] and is_whole
        ):
            shares = [percent(r[key]) for key in ("consistency", "knn_bank", "knn")]
            lines.append(f"| {r['round']} | {r['anchors']:,} | {' | '.join(shares)} |")
    return "\n".join(lines)


def _torchvision_head(name: str) -> str | None:
    """What torchvision calls the last layer; None where the trunk is no model of its."""
    if "resnet" in name:
        return "fc."
    return "classifier.6." if name == "torchvision_alexnet" else None


def _how_to_load(export: Export) -> str:
    encoder = export.config.encoder
    lines = {
        "onnx": _LOAD_ONNX,
        "safetensors": _LOAD_SAFETENSORS.format(name=encoder.name, dim=encoder.feature_dim),
        "torchvision": _load_torchvision(encoder.name, encoder.feature_dim, export.has_head),
    }[export.format]
    return f"```python\n{lines}\n```"


_LOAD_ONNX = """\
session = onnxruntime.InferenceSession("encoder.onnx")
(features,) = session.run(None, {"images": images})  # float32, B x 3 x H x W"""

_LOAD_SAFETENSORS = """\
from pathlib import Path

from and_dist.config.schema import EncoderConfig
from and_dist.models.encoders import build_encoder
from and_dist.models.pretrained import load_weights

encoder = build_encoder(EncoderConfig(name="{name}", feature_dim={dim}), seed=0)
load_weights(encoder, Path("encoder.safetensors"))

# or train on from it: and-dist train ... encoder.weights=encoder.safetensors"""


def _load_torchvision(name: str, dim: int, has_head: bool) -> str:
    """Lines that make the model the state dict fits."""
    is_alexnet = name == "torchvision_alexnet"
    model = name.removeprefix("cifar_").removeprefix("torchvision_")
    lines = [f"model = torchvision.models.{model}()"]
    if name.startswith("cifar_"):
        lines.append("model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)")
        lines.append("model.maxpool = torch.nn.Identity()")
    last = "model.classifier[6]" if is_alexnet else "model.fc"
    layer = f"torch.nn.Linear({last}.in_features, {dim})" if has_head else "torch.nn.Identity()"
    lines.append(f"{last} = {layer}")
    lines.append('model.load_state_dict(torch.load("encoder.pth", weights_only=True))')
    if has_head:
        lines.append("features = torch.nn.functional.normalize(model(images), dim=1)")
    return "\n".join(lines)


def _plain_weights(encoder: Encoder, has_head: bool) -> dict[str, Tensor]:
    weights = encoder.state_dict()
    return {k: v.contiguous() for k, v in weights.items() if has_head or k.startswith("trunk.")}


def _metadata(export: Export) -> dict[str, str]:
    """Text alone, as safetensors has it."""
    return {
        "format": "pt",
        "config": json.dumps(export.config.model_dump(mode="json")),
        "checkpoint": export.trained.checkpoint.name,
        "content_hash": export.trained.state["images"]["content_hash"],
    }


def _write_onnx(encoder: Encoder, export: Export, file: Path) -> None:
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
