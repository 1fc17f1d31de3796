"""Weights of others: read where they fit, refused with a sentence where not, never executed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from and_dist.config.schema import EncoderConfig
from and_dist.models.encoders import Encoder, build_encoder
from and_dist.models.pretrained import load_weights

Weights = dict[str, Tensor]


def fresh(name: str = "cifar_resnet18", seed: int = 0) -> Encoder:
    return build_encoder(EncoderConfig(name=name, feature_dim=16), seed)


def assert_equal(encoder: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    for name, ours in encoder.state_dict().items():
        assert torch.equal(ours, theirs[name]), name


def published(weights: Weights) -> dict[str, Any]:
    """What the 2019 program saves: names of its ResNet, under DataParallel, beside the rest."""
    net = {
        "module."
        + name.removeprefix("trunk.").replace("downsample", "shortcut").replace("head", "linear"): t
        for name, t in weights.items()
    }
    discovery = {"anchor_indexes": torch.arange(3), "entropy": torch.rand(9)}
    return {
        "net": net,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.03}]},
        "ANs_discovery": discovery,
        "npc": {"memory": torch.rand(9, 16)},
        "acc": 0.8,
        "epoch": 4,
        "round": 1,
        "session": "20190301-120000",
    }


def test_weights_of_the_published_code_are_read(tmp_path: Path) -> None:
    theirs, ours = fresh(seed=1), fresh()
    file = tmp_path / "0001-12500.ckpt"
    torch.save(published(theirs.state_dict()), file)
    assert load_weights(ours, file).startswith(f"weights of {file}, of the published code: ")
    assert_equal(ours, theirs)


def test_the_oldest_file_layout_is_read_too(tmp_path: Path) -> None:
    """The published code ran with torch 0.4, whose files were no zip archives."""
    theirs, ours = fresh(seed=1), fresh()
    file = tmp_path / "old.ckpt"
    torch.save(published(theirs.state_dict()), file, _use_new_zipfile_serialization=False)
    load_weights(ours, file)
    assert_equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("resnet18", models.resnet18),
        ("resnet50", models.resnet50),
        ("torchvision_alexnet", models.alexnet),
    ],
)
def test_weights_of_torchvision_come_with_a_fresh_head(
    tmp_path: Path, name: str, build: Callable[[], torch.nn.Module]
) -> None:
    theirs, ours = build(), fresh(name)
    head = ours.head.weight.clone()
    torch.save(theirs.state_dict(), file := tmp_path / "weights.pth")
    assert load_weights(ours, file).endswith("with a fresh head")
    assert torch.equal(ours.head.weight, head)
    their_weights = theirs.state_dict()
    for name_, weight in ours.trunk.state_dict().items():
        assert torch.equal(weight, their_weights[name_]), name_


@pytest.mark.parametrize("name", ["tiny", "small", "alexnet", "cifar_alexnet", "resnet18"])
def test_our_own_weights_are_read_from_safetensors(tmp_path: Path, name: str) -> None:
    theirs, ours = fresh(name, seed=1), fresh(name)
    save_file(theirs.state_dict(), file := tmp_path / "encoder.safetensors")
    load_weights(ours, file)
    assert_equal(ours, theirs)


def test_a_folder_of_files_is_read_as_one(tmp_path: Path) -> None:
    """As Hugging Face writes what is too large for one file."""
    theirs, ours = fresh(seed=1), fresh()
    weights = list(theirs.state_dict().items())
    save_file(dict(weights[::2]), tmp_path / "model-00001-of-00002.safetensors")
    save_file(dict(weights[1::2]), tmp_path / "model-00002-of-00002.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert load_weights(ours, tmp_path) == f"weights of {tmp_path}"
    assert_equal(ours, theirs)


def test_a_folder_without_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder without safetensors files"):
        load_weights(fresh(), tmp_path)


def test_a_headless_file_leaves_our_head(tmp_path: Path) -> None:
    theirs, ours = fresh(seed=1), fresh()
    trunk = {k: v for k, v in theirs.state_dict().items() if k.startswith("trunk.")}
    save_file(trunk, file := tmp_path / "encoder.safetensors")
    assert load_weights(ours, file).endswith("with a fresh head")
    assert not torch.equal(ours.head.weight, theirs.head.weight)
    assert torch.equal(ours.trunk.conv1.weight, theirs.trunk.conv1.weight)


def own_network(width: int = 8) -> Encoder:
    """An encoder as a function of the user's own makes it, without the classifier it once had."""
    trunk = nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    encoder = Encoder(trunk, width, EncoderConfig(name="my:own", feature_dim=4))
    encoder.is_ours = False
    return encoder


def test_a_classifier_that_an_own_network_lacks_is_left_out(tmp_path: Path) -> None:
    ours, theirs = own_network(), own_network()
    trunk = theirs.trunk.state_dict()
    classifier = {"_fc.weight": torch.rand(1000, 8), "_fc.bias": torch.rand(1000)}
    save_file({**trunk, **classifier}, file := tmp_path / "theirs.safetensors")
    assert load_weights(ours, file) == f"weights of {file} without _fc, with a fresh head"
    assert_equal(ours.trunk, theirs.trunk)


@pytest.mark.parametrize(
    "more",
    [
        {"_fc.weight": torch.rand(1000, 9)},
        {"_fc.bias": torch.rand(1000)},
        {"_fc.weight": torch.rand(8)},
        {"_fc.weight": torch.rand(1000, 8), "_bn.weight": torch.rand(8)},
        {"_fc.weight": torch.rand(1000, 8), "_fc.running_mean": torch.rand(8)},
    ],
)
def test_other_layers_that_an_own_network_lacks_are_told(tmp_path: Path, more: Weights) -> None:
    ours = own_network()
    save_file({**ours.trunk.state_dict(), **more}, file := tmp_path / "theirs.safetensors")
    with pytest.raises(ValueError, match=rf"has unknown trunk\.{min(more)}"):
        load_weights(ours, file)


class Trap:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("place", ["alone", "beside the weights"])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, is_zip: bool, place: str) -> None:
    proof, file = tmp_path / "executed", tmp_path / "evil.ckpt"
    content = {**published(fresh().state_dict()), "session": Trap(proof)}
    torch.save(
        Trap(proof) if place == "alone" else content, file, _use_new_zipfile_serialization=is_zip
    )
    with pytest.raises(
        ValueError, match="tensors and plain values alone; nothing else is ever run"
    ):
        load_weights(fresh(), file)
    assert not proof.exists()


def without_a_layer(weights: Weights) -> Weights:
    return {k: v for k, v in weights.items() if not k.startswith("trunk.layer3")}


def with_another_layer(weights: Weights) -> Weights:
    return {**weights, "trunk.layer9.weight": torch.zeros(2)}


def of_another_shape(weights: Weights) -> Weights:
    return {**weights, "trunk.conv1.weight": torch.zeros(64, 3, 7, 7)}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without_a_layer, "it lacks trunk.layer3.0.bn1.bias, .* and 20 more"),
        (with_another_layer, "it has unknown trunk.layer9.weight"),
        (of_another_shape, r"has other shapes: trunk.conv1.weight \(64, 3, 7, 7\) for"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    tmp_path: Path, change: Callable[[Weights], Weights], sentence: str
) -> None:
    ours = fresh()
    torch.save(change(fresh(seed=1).state_dict()), file := tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=sentence):
        load_weights(ours, file)
    assert_equal(ours, fresh())


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("none.pth", None, "is no file"),
        ("empty.pth", b"", "cannot be read"),
        ("text.pth", b"hello, world", "cannot be read"),
        ("text.safetensors", b"hello, world", "cannot be read"),
    ],
)
def test_what_is_no_weights_gets_a_sentence(
    tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        load_weights(fresh(), tmp_path / name)


@pytest.mark.parametrize("content", [{}, {"net": 3}, [torch.zeros(2)], torch.zeros(2)])
def test_tensors_that_are_no_weights_get_a_sentence(tmp_path: Path, content: object) -> None:
    torch.save(content, file := tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="holds no weights"):
        load_weights(fresh(), file)
