"""The card of an exported encoder: every fact in it is the checkpoint's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageOps

from and_dist.checkpoint.card_scripts import Format, classifier_of, is_network_of
from and_dist.checkpoint.model_card import describe_model
from and_dist.checkpoint.reader import OpenedCheckpoint
from and_dist.config.load import load_config
from and_dist.data.datasets import index_named
from and_dist.evaluation.image_reader import ImageReader
from and_dist.models.encoders import Encoder, build_encoder
from tests.pictures import oriented, picture, save
from tests.unit.checkpoint.runs import state_of


def opened(run: Path, *overrides: str, epochs: int = 3) -> OpenedCheckpoint:
    config = load_config(["configs/debug.yaml"], ["encoder.feature_dim=16", *overrides])
    (run / "metrics.jsonl").touch()
    checkpoint = run / "checkpoints" / "r01-e0003"
    return OpenedCheckpoint(run, config, checkpoint, state_of(config, epochs))


def encoder_of(described: OpenedCheckpoint) -> Encoder:
    with torch.device("meta"):
        return build_encoder(described.config.encoder, 0)


def describe(described: OpenedCheckpoint, kind: Format, *others: Any) -> str:
    return describe_model(described, encoder_of(described), kind, *others)


def write_rounds(run: Path) -> None:
    rounds = [
        {"round": r, "anchors": 1000 * r, "consistency": None, "knn_bank": 0.25, "knn": 0.5}
        for r in range(3)
    ]
    lines = [json.dumps({"event": "round", "time": 0.0} | record) for record in rounds]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("overrides", "fact"),
    [
        ((), "# debug: tiny\n"),
        ((), "by Anchor Neighbourhood Discovery, without labels; checkpoint r01-e0003, after 3 of"),
        (("method=instance",), "by method=instance, without labels;"),
        (("method=supervised",), "by method=supervised, with labels;"),
        ((), "after 3 of 3 epochs of round 1 of 2."),
        ((), "- file: `encoder.file`, with its head: features of unit norm, 16 long\n"),
        ((), "- sha256: `ab12`\n"),
        ((), "RGB in 0..1, 32 x 32 (whole image), minus ["),
        (("data.test_resize=40",), "32 x 32 (shorter side to 40, centre crop), minus ["),
        ((), "- trained on: shapes/train, 5 images, manifest hash `0123abcd`"),
        ((), "kNN with K 5, tau 0."),
    ],
)
def test_a_fact_is_in_the_card(tmp_path: Path, overrides: tuple[str, ...], fact: str) -> None:
    card = describe(opened(tmp_path, *overrides), "safetensors", True, "encoder.file", "ab12")
    assert fact in card


def test_without_the_head_the_card_says_so(tmp_path: Path) -> None:
    card = describe(opened(tmp_path), "onnx", False, "encoder.onnx", "ab12")
    assert "- file: `encoder.onnx`, without its head: what the trunk gives\n" in card
    assert "normalize" not in card


@pytest.mark.parametrize(("epochs", "last"), [(3, 1), (2, 0)])
def test_only_rounds_that_the_checkpoint_has_finished_are_told(
    tmp_path: Path, epochs: int, last: int
) -> None:
    """The run itself may be further."""
    write_rounds(tmp_path)
    card = describe(opened(tmp_path, epochs=epochs), "onnx", True, "encoder.onnx", "ab12")
    rows = [line for line in card.splitlines() if line.startswith("| ") and "round" not in line]
    expected = ["| 0 | 0 | - | 25.0 | 50.0 |", "| 1 | 1,000 | - | 25.0 | 50.0 |"]
    assert rows == expected[: last + 1]


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("onnx", 'session = onnxruntime.InferenceSession("encoder.onnx")'),
        ("onnx", "(features,) = session.run("),
        ("safetensors", 'encoder = and_dist.load_encoder("encoder.safetensors").eval()'),
        ("safetensors", "encoder.weights=encoder.safetensors"),
        ("safetensors", "with torch.no_grad():"),
        ("safetensors", "features = encoder(torch.from_numpy(images))"),
    ],
)
def test_every_format_says_how_to_load_it(tmp_path: Path, kind: Format, line: str) -> None:
    assert line in describe(opened(tmp_path), kind, True, "encoder.file", "ab12")


@pytest.mark.parametrize("has_head", [True, False])
@pytest.mark.parametrize("name", ["cifar_resnet18", "resnet18", "torchvision_alexnet"])
def test_the_lines_for_torchvision_build_a_model_of_the_same_layers(
    tmp_path: Path, name: str, has_head: bool
) -> None:
    described = opened(tmp_path, f"encoder.name={name}")
    card = describe(described, "torchvision", has_head, "encoder.pth", "ab12")
    script = card.split("```python\n")[1].split("\n```")[0]
    lines = script[script.index("model = ") :].splitlines()
    load = next(at for at, line in enumerate(lines) if line.startswith("model.load_state_dict"))
    names = {"torch": torch, "torchvision": torchvision}
    exec("\n".join(lines[:load]), names)
    model = names["model"]
    assert isinstance(model, torch.nn.Module)
    last = model.get_submodule(classifier_of(encoder_of(described)))
    width = last.out_features if isinstance(last, torch.nn.Linear) else None
    assert width == (16 if has_head else None)
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    is_of_cifar = name == "cifar_resnet18"
    assert (first.kernel_size == (3, 3)) == is_of_cifar
    assert isinstance(getattr(model, "maxpool", None), torch.nn.Identity) == is_of_cifar
    assert lines[load + 1].startswith("model.eval()")
    assert ("features = torch.nn.functional.normalize(model(" in script) == has_head


@pytest.mark.parametrize("test_resize", [None, 36, 24])
def test_the_lines_read_an_image_as_the_evaluation_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test_resize: int | None
) -> None:
    """Seen: 1 of 255 levels, where Pillow rounds between the two directions."""
    described = opened(tmp_path, f"data.test_resize={test_resize or 'null'}")
    card = describe(described, "onnx", True, "encoder.onnx", "ab12")
    script = card.split("```python\n")[1].split("\n```")[0]
    reading = script[script.index("image = ") : script.index("(features,)")]
    save(tmp_path / "image.jpg", picture(1, (90, 61)), quality=95, exif=oriented(6))
    monkeypatch.chdir(tmp_path)
    names = {"np": np, "Image": Image, "ImageOps": ImageOps}
    exec(reading, names)
    images = index_named([Path("image.jpg")], 100)
    data = described.config.data
    expected = ImageReader(images, data, torch.device("cpu")).load([0])[0]
    assert isinstance(names["images"], np.ndarray)
    apart = (torch.from_numpy(names["images"][0]) - expected).abs().amax(dim=(1, 2))
    assert (255 * apart * torch.tensor(data.std)).max() < 1.01


def test_only_networks_of_theirs_are_exported_for_them() -> None:
    names = (
        "tiny",
        "alexnet",
        "resnet18",
        "torchvision/vit_b_16",
        "timm/resnet18",
        "my.resnet:net",
    )
    of_torchvision = [is_network_of("torchvision", name) for name in names]
    assert of_torchvision == [False, False, True, True, False, False]
    assert [is_network_of("timm", name) for name in names] == [False] * 4 + [True, False]
