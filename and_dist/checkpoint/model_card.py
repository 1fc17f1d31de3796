"""Write the card of an exported encoder: what it is, how to feed it and how well it does."""

from __future__ import annotations

from typing import Literal

import yaml

from and_dist.checkpoint.reader import OpenedCheckpoint
from and_dist.config.schema import Config, DataConfig, EncoderConfig
from and_dist.runs.folder import read_starts, say_if_cut
from and_dist.runs.metrics_file import read_metrics
from and_dist.utils.formatting import percent

Format = Literal["torchvision", "safetensors", "onnx"]


CARD = "README.md"


def describe_model(
    opened: OpenedCheckpoint, kind: Format, has_head: bool, file_name: str, sha256: str
) -> str:
    """Return the card: what it is, how to feed it, what it was trained on and how well it does."""
    config, progress, images = opened.config, opened.state["progress"], opened.state["images"]
    epochs = config.epochs_of(progress["round_index"])
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).strip()
    paragraphs = [
        f"# {config.name}: {config.encoder.name}",
        f"Trained with and-dist by {_describe_method(config.method)}; checkpoint "
        f"{opened.checkpoint.name}, after {progress['epochs']} of {epochs} epochs of round "
        f"{progress['round_index']} of {config.last_round}.",
        f"- file: `{file_name}`, {_describe_output(config.encoder, has_head)}\n"
        f"- sha256: `{sha256}`\n"
        f"- input: {_describe_input(config.data)}\n"
        f"- trained on: {config.data.train}, {images['rows']:,} images, "
        f"manifest hash `{images['content_hash']}`",
        _how_to_load(kind, config, has_head),
        _table_of_rounds(opened),
        f"kNN with {config.evaluation.votes_among(images['rows'])}. Consistency and kNN come from "
        "labels that training has not seen; - where there are none.",
        f"## Config\n\n```yaml\n{settings}\n```",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _describe_method(method: str) -> str:
    """Describe how the encoder was trained."""
    if method == "and":
        return "Anchor Neighbourhood Discovery, without labels"
    return f"method={method}, " + ("with labels" if method == "supervised" else "without labels")


def _describe_output(encoder: EncoderConfig, has_head: bool) -> str:
    """Describe what the exported encoder gives for an image."""
    if has_head:
        return f"with its head: features of unit norm, {encoder.feature_dim} long"
    return "without its head: what the trunk gives"


def _describe_input(data: DataConfig) -> str:
    """Describe the images that the exported encoder takes."""
    cut = f"shorter side to {data.test_resize}, centre crop" if data.test_resize else "whole image"
    return (
        f"RGB in 0..1, {data.image_size} x {data.image_size} ({cut}), minus {list(data.mean)}, "
        f"divided by {list(data.std)}"
    )


def _table_of_rounds(opened: OpenedCheckpoint) -> str:
    """Return a table of the rounds that the checkpoint has finished."""
    lines = ["| round | anchors | consistency % | bank-kNN % | kNN % |", "|---|---|---|---|---|"]
    progress = opened.state["progress"]
    is_whole = progress["epochs"] == opened.config.epochs_of(progress["round_index"])
    say_if_cut(opened.run, read_starts(opened.run))
    for r in read_metrics(opened.run / "metrics.jsonl", "round"):
        if r["round"] < progress["round_index"] or (
            r["round"] == progress["round_index"] and is_whole
        ):
            shares = [percent(r[key]) for key in ("consistency", "knn_bank", "knn")]
            lines.append(f"| {r['round']} | {r['anchors']:,} | {' | '.join(shares)} |")
    return "\n".join(lines)


def torchvision_head(name: str) -> str | None:
    """Return torchvision's name of the last layer; None where the trunk is no model of its."""
    if "resnet" in name:
        return "fc."
    return "classifier.6." if name == "torchvision_alexnet" else None


def _how_to_load(kind: Format, config: Config, has_head: bool) -> str:
    """Return a Python script that loads the exported file and gives the features of an image."""
    name, dim = config.encoder.name, config.encoder.feature_dim
    imports, load, compute = {
        "onnx": ("import onnxruntime", _LOAD_ONNX, _COMPUTE_BY_ONNX),
        "safetensors": ("import torch", _LOAD_SAFETENSORS, _compute_by("encoder")),
        "torchvision": (
            "import torch\nimport torchvision",
            _load_torchvision(name, dim, has_head),
            _compute_by("model", is_scaled=has_head),
        ),
    }[kind]
    own = "\nimport and_dist" if kind == "safetensors" else ""
    first = f"import numpy as np\n{imports}\nfrom PIL import Image, ImageOps\n{own}".strip()
    parts = [first, load, _read_image(config.data), compute]
    return "```python\n" + "\n\n".join(parts) + "\n```"


def _read_image(data: DataConfig) -> str:
    """Return the lines that read an image file as the evaluation does."""
    side, lines = data.image_size, [_READ]
    box = ""
    if data.test_resize:
        lines.append(_CROP.format(share=f"{side} / {data.test_resize}"))
        box = ", box=box"
    lines.append(f"image = image.resize(({side}, {side}), Image.Resampling.BILINEAR{box})")
    lines.append(_NORMALISE.format(mean=list(data.mean), std=list(data.std)))
    return "\n".join(lines)


_READ = """\
image = ImageOps.exif_transpose(Image.open("image.jpg")).convert("RGB")"""

_CROP = """\
side = min(image.size) * {share}
left, top = max(image.width - side, 0) / 2, max(image.height - side, 0) / 2
box = left, top, image.width - left, image.height - top"""

_NORMALISE = """\
pixels = np.asarray(image, dtype=np.float32) / 255
pixels = (pixels - np.float32({mean})) / np.float32({std})
images = pixels.transpose(2, 0, 1)[None]  # float32, B x 3 x H x W"""


_LOAD_ONNX = """\
session = onnxruntime.InferenceSession("encoder.onnx")"""

_COMPUTE_BY_ONNX = """\
(features,) = session.run(None, {"images": images})
print(features)"""


_LOAD_SAFETENSORS = """\
encoder = and_dist.load_encoder("encoder.safetensors").eval()
# or train on from it: and-dist train ... encoder.weights=encoder.safetensors"""


def _load_torchvision(name: str, dim: int, has_head: bool) -> str:
    """Return the lines that build the model which the state dict fits."""
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
    lines.append("model.eval()  # batch norm by its running statistics, no dropout")
    return "\n".join(lines)


def _compute_by(model: str, is_scaled: bool = False) -> str:
    """Return the lines that compute the features, and scale them to unit norm."""
    features = f"{model}(torch.from_numpy(images))"
    if is_scaled:
        features = f"torch.nn.functional.normalize({features}, dim=1)"
    return f"with torch.no_grad():\n    features = {features}\nprint(features)"
