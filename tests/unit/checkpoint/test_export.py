"""What is exported from a checkpoint, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from and_dist.checkpoint import export as export_module
from and_dist.checkpoint.export import (
    Export,
    Pixels,
    names_of_export,
    plan_export,
    run_export,
    under_their_names,
)
from and_dist.config.schema import EncoderConfig
from and_dist.distributed.world import World
from and_dist.models.encoders import build_encoder
from benchmarks.common.rank_pool import RankPool
from tests.unit.checkpoint.runs import save_here, write_run


@pytest.fixture
def run(ranks: RankPool, tmp_path: Path) -> Path:
    config = write_run(tmp_path / "run")
    ranks.run(2, save_here, tmp_path / "run", config, "r01-e0003")
    return tmp_path / "run"


def export_here(world: World, export: Export) -> None:
    run_export(export, world)


@pytest.mark.parametrize("has_head", [True, False])
def test_the_weights_of_the_checkpoint_are_exported(
    ranks: RankPool, run: Path, has_head: bool
) -> None:
    export = plan_export(run, None, "safetensors", has_head, None)
    name = "r01-e0003-safetensors" + ("" if has_head else "-headless")
    assert export.out == run / "export" / name
    ranks.run(1, export_here, export)
    weights = build_encoder(export.config.encoder, 7).state_dict()
    kept = {key: t for key, t in weights.items() if has_head or not key.startswith("head.")}
    exported = load_file(export.file)
    assert exported.keys() == kept.keys()
    assert all(torch.equal(exported[key], kept[key]) for key in kept)
    with safe_open(export.file, "pt") as opened:
        about = opened.metadata()
    assert (about["checkpoint"], about["content_hash"]) == ("r01-e0003", "0123abcd")
    assert names_of_export(export.out) == {"README.md", "encoder.safetensors"}


def test_torchvision_gets_a_state_dict_of_its_own_names(ranks: RankPool, tmp_path: Path) -> None:
    config = write_run(tmp_path, "encoder.name=cifar_resnet18")
    ranks.run(1, save_here, tmp_path, config, "r01-e0003")
    export = plan_export(tmp_path, None, "torchvision", True, None)
    ranks.run(1, export_here, export)
    weights = torch.load(export.file, weights_only=True)
    encoder = build_encoder(config.encoder, 7)
    assert torch.equal(weights["fc.weight"], encoder.head.weight)
    assert torch.equal(weights["conv1.weight"], encoder.trunk.conv1.weight)


def test_an_export_is_replaced_where_the_folder_was_not_named(ranks: RankPool, run: Path) -> None:
    export = plan_export(run, None, "safetensors", True, None)
    ranks.run(1, export_here, export)
    ranks.run(1, export_here, plan_export(run, None, "safetensors", True, None))
    (export.out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        plan_export(run, None, "safetensors", True, None)


def test_in_a_named_folder_only_force_replaces(ranks: RankPool, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ranks.run(1, export_here, plan_export(run, None, "safetensors", True, out))
    with pytest.raises(ValueError, match=r"encoder\.safetensors|README\.md"):
        plan_export(run, None, "safetensors", True, out)
    ranks.run(1, export_here, plan_export(run, None, "safetensors", True, out, force=True))


def test_weights_that_someone_changed_are_not_ours(ranks: RankPool, run: Path) -> None:
    export = plan_export(run, None, "safetensors", True, None)
    ranks.run(1, export_here, export)
    export.file.write_bytes(b"theirs")
    assert names_of_export(export.out) == {"README.md"}
    card = export.out / "README.md"
    card.write_text(re.sub(r"\n- sha256: .*", "", card.read_text()))
    assert names_of_export(export.out) == {"README.md", "encoder.safetensors"}
    card.write_text("my notes")
    assert names_of_export(export.out) is None
    card.unlink()
    assert names_of_export(export.out) is None


@pytest.mark.parametrize(
    ("format_name", "sentence"),
    [
        ("keras", "--format keras is not one of: torchvision, timm, safetensors, onnx"),
        ("torchvision", "encoder.name=tiny is no model of torchvision's"),
    ],
)
def test_what_cannot_be_exported_is_refused(run: Path, format_name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        plan_export(run, None, format_name, True, None)


def test_onnx_is_refused_where_a_package_is_missing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for missing in ("onnx", "onnxscript"):
        monkeypatch.setattr(export_module, "find_spec", lambda name, gone=missing: name != gone)
        with pytest.raises(ValueError, match="needs the packages onnx and onnxscript"):
            plan_export(run, None, "onnx", True, None)
        assert plan_export(run, None, "safetensors", True, None).format == "safetensors"


@pytest.mark.parametrize("has_head", [True, False])
@pytest.mark.parametrize(
    ("name", "head"), [("cifar_resnet18", "fc."), ("torchvision_alexnet", "classifier.6.")]
)
def test_our_head_is_torchvisions_last_layer(name: str, head: str, has_head: bool) -> None:
    with torch.device("meta"):
        encoder = build_encoder(EncoderConfig(name=name, feature_dim=16), 7)
    weights = under_their_names(encoder, has_head)
    assert {key for key in weights if key.startswith(head)} == (
        {head + "weight", head + "bias"} if has_head else set()
    )
    assert len(weights) == len(encoder.trunk.state_dict()) + 2 * has_head
    assert weights.keys() - {head + "weight", head + "bias"} == encoder.trunk.state_dict().keys()


@torch.no_grad()
def test_pixels_become_what_the_encoder_gives() -> None:
    encoder = build_encoder(EncoderConfig(name="tiny", feature_dim=16), 7).eval()
    images_BCHW = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(Pixels(encoder, True)(images_BCHW), encoder(images_BCHW))
    torch.testing.assert_close(Pixels(encoder, False)(images_BCHW), encoder.trunk(images_BCHW))
