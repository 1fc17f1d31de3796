"""Write the script of a card, which loads an exported encoder without and-dist or with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from and_dist.config.schema import Config, DataConfig, EncoderConfig
from and_dist.models.encoders import Encoder
from and_dist.models.named_networks import TIMM, TORCHVISION, transformer_settings
from and_dist.models.torchvision_networks import ResNet

Format = Literal["torchvision", "timm", "safetensors", "onnx"]


def is_network_of(kind: Format, name: str) -> bool:
    """Return whether a trunk is a network of torchvision's, or of timm's."""
    if kind == "timm":
        return name.startswith(TIMM)
    is_ours = "/" not in name and ":" not in name and "resnet" in name
    return name.startswith(TORCHVISION) or is_ours or name == "torchvision_alexnet"


def classifier_of(encoder: Encoder) -> str:
    """Return the name that a network's authors give the layer in whose place our head is."""
    if encoder.is_ours:
        return "fc" if isinstance(encoder.trunk, ResNet) else "classifier.6"
    return encoder.classifier


def script_of(kind: Format, config: Config, encoder: Encoder, has_head: bool) -> str:
    """Return a Python script that loads the exported file and gives the features of an image."""
    imports, after = IMPORTS[kind]
    by_model = _compute_by("model", is_scaled=has_head)
    if kind == "onnx":
        load, compute = _LOAD_ONNX, _COMPUTE_BY_ONNX
    elif kind == "safetensors":
        load, compute = _LOAD_SAFETENSORS, _compute_by("encoder")
    elif kind == "timm":
        load, compute = _load_timm(config, encoder, has_head), by_model
    else:
        load, compute = _load_torchvision(config, encoder, has_head), by_model
    first = f"import numpy as np\n{imports}\nfrom PIL import Image, ImageOps\n{after}".strip()
    parts = [first, load, _read_image(config.data), compute]
    return "```python\n" + "\n\n".join(parts) + "\n```"


IMPORTS: dict[Format, tuple[str, str]] = {
    "onnx": ("import onnxruntime", ""),
    "safetensors": ("import torch", "\nimport and_dist"),
    "timm": ("import timm\nimport torch", "from safetensors.torch import load_file"),
    "torchvision": ("import torch\nimport torchvision", ""),
}
"""The imports of a script before Pillow, and after it."""


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


def _load_torchvision(config: Config, encoder: Encoder, has_head: bool) -> str:
    """Return the lines that build torchvision's model, which the state dict fits."""
    name = config.encoder.name
    if isinstance(encoder.trunk, ResNet) or name == "torchvision_alexnet":
        model = f"torchvision.models.{name.removeprefix('cifar_').removeprefix('torchvision_')}()"
    elif name.startswith(f"{TORCHVISION}vit_"):
        given = _arguments(transformer_settings(encoder.trunk))
        model = f"torchvision.models.VisionTransformer({given})"
    else:
        given = _arguments(config.encoder.options, before=", ")
        model = f'torchvision.models.get_model("{name.removeprefix(TORCHVISION)}"{given})'
    lines = [f"model = {model}"]
    if name.startswith("cifar_"):
        lines.append("model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)")
        lines.append("model.maxpool = torch.nn.Identity()")
    last = _layer(classifier_of(encoder))
    layer = _head_lines(encoder, config.encoder) if has_head else "torch.nn.Identity()"
    lines.append(f"{last} = {layer}")
    lines.append('model.load_state_dict(torch.load("encoder.pth", weights_only=True))')
    lines.append("model.eval()  # batch norm by its running statistics, no dropout")
    return "\n".join(lines)


def _load_timm(config: Config, encoder: Encoder, has_head: bool) -> str:
    """Return the lines that build timm's model, which the file fits."""
    given = dict(config.encoder.options)
    about: Any = encoder.trunk.default_cfg
    if about.get("fixed_input_size"):
        given.setdefault("img_size", config.data.image_size)
    name, shown = config.encoder.name.removeprefix(TIMM), _arguments(given, before=", ")
    lines = [f'model = timm.create_model("{name}", num_classes=0{shown})']
    if has_head:
        last = _layer(classifier_of(encoder))
        lines.append(f"{last} = {_head_lines(encoder, config.encoder)}")
    lines.append('model.load_state_dict(load_file("encoder.safetensors"))')
    lines.append("model.eval()  # batch norm by its running statistics, no dropout")
    return "\n".join(lines)


def _head_lines(encoder: Encoder, config: EncoderConfig) -> str:
    """Return the expression that builds a head like that of an encoder."""
    ends = encoder.width, config.feature_dim
    if config.head == "linear":
        return f"torch.nn.Linear{ends}"
    norm = f"    torch.nn.BatchNorm1d({config.hidden_dim}),\n" if config.hidden_norm else ""
    return (
        "torch.nn.Sequential(\n"
        f"    torch.nn.Linear({ends[0]}, {config.hidden_dim}),\n{norm}"
        f"    torch.nn.ReLU(),\n    torch.nn.Linear({config.hidden_dim}, {ends[1]}),\n)"
    )


def _layer(name: str) -> str:
    """Return the expression of a model's layer of a dotted name, such as classifier.6."""
    return "model" + "".join(
        f"[{part}]" if part.isdigit() else f".{part}" for part in name.split(".")
    )


def _arguments(given: Mapping[str, Any], before: str = "") -> str:
    """Return arguments as Python writes them, after a text if there are any."""
    shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
    return f"{before}{shown}" if shown else ""


def _compute_by(model: str, is_scaled: bool = False) -> str:
    """Return the lines that compute the features, and scale them to unit norm."""
    features = f"{model}(torch.from_numpy(images))"
    if is_scaled:
        features = f"torch.nn.functional.normalize({features}, dim=1)"
    return f"with torch.no_grad():\n    features = {features}\nprint(features)"
