"""What leaves for other programs gives them what we see."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from and_dist.config.load import load_config
from and_dist.data.shapes import draw_shapes
from and_dist.data.stores import MemoryStore
from and_dist.models.encoders import Encoder, build_encoder
from and_dist.models.pretrained import load_weights
from tests.conftest import Cli
from tests.pictures import oriented, picture, save
from tests.ranks.runs import checkpoint_of, train_here

QUICK = ("curriculum.epochs=1", "curriculum.rounds=1", "data.limit=48", "data.limit_test=32")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of torchvision's network, laid out as there, with test images that are cropped."""
    network = ("encoder.name=cifar_resnet18", "encoder.feature_dim=16")
    other = ("encoder.channels_last=false", "data.test_resize=36")
    return train_here(tmp_path_factory.mktemp("runs"), *QUICK, *network, *other)


@pytest.fixture(scope="module")
def encoder(run: Path) -> Encoder:
    """As the run has left it, read another way."""
    config = load_config([run / "config.yaml"])
    encoder = build_encoder(config.encoder, 1)
    saved = checkpoint_of(run)
    encoder.load_state_dict(
        {
            name.removeprefix("encoder."): t
            for name, t in saved.items()
            if name.startswith("encoder.")
        }
    )
    return encoder.eval()


@pytest.fixture(scope="module")
def images_BCHW() -> Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_torchvision_computes_our_features(
    run: Path, encoder: Encoder, images_BCHW: Tensor, cli: Cli
) -> None:
    status, said, _ = cli("export", run, "--format", "torchvision")
    folder = run / "export" / "r01-e0001-torchvision"
    assert (status, f"written to {folder}" in said) == (0, True)
    model = torchvision.models.resnet18(num_classes=16)
    model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = torch.nn.Identity()
    model.load_state_dict(torch.load(folder / "encoder.pth", weights_only=True))
    features_BD = functional.normalize(model.eval()(images_BCHW), dim=1)
    assert torch.equal(features_BD, encoder(images_BCHW))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that the run was trained on, and a photo of another shape that lies on its side."""
    folder = tmp_path_factory.mktemp("photos")
    store = draw_shapes("train", 3).index.store
    assert isinstance(store, MemoryStore)
    save(folder / "row-2.png", Image.fromarray(store.block[-32 * 32 * 3 :].reshape(32, 32, 3)))
    save(folder / "tall.jpg", picture(1, (120, 84)), quality=95, exif=oriented(6))
    return folder


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an encoder that torchvision does not have, with test images that are not cropped."""
    return train_here(tmp_path_factory.mktemp("tiny"), *QUICK)


def run_card(folder: Path, image: Path, is_fresh: bool) -> np.ndarray:
    """The features [D] that the card's script gives as it is printed, in its folder."""
    card = (folder / "README.md").read_text()
    (folder / "script.py").write_text(card.split("```python\n")[1].split("```")[0])
    (folder / "image.jpg").write_bytes(image.read_bytes())
    if is_fresh:
        path = f"{Path.cwd()}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        environment = os.environ | {"PYTHONPATH": path}
        command = [sys.executable, "-c", SAVING]
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    else:
        with contextlib.chdir(folder):
            exec(SAVING, {})
    (features_D,) = np.load(folder / "features.npy")
    return np.asarray(features_D)


SAVING = """
import runpy, numpy
numpy.save("features.npy", numpy.asarray(runpy.run_path("script.py")["features"]))
"""


@pytest.mark.parametrize("is_fresh", [False, pytest.param(True, marks=pytest.mark.whole_run)])
@pytest.mark.parametrize("head", ["--head", "--no-head"])
@pytest.mark.parametrize(
    ("run_name", "kind"),
    [("run", "torchvision"), ("run", "safetensors"), ("run", "onnx"), ("tiny_run", "safetensors")],
)
def test_the_script_of_the_card_gives_the_features_of_embed(
    request: pytest.FixtureRequest,
    photos: Path,
    tmp_path: Path,
    cli: Cli,
    run_name: str,
    kind: str,
    head: str,
    is_fresh: bool,
) -> None:
    """Seen: 1 - cosine is 6e-6; 0.05 where the script leaves batch norm in training mode."""
    run = request.getfixturevalue(run_name)
    embedded, out = tmp_path / "embedded.npy", tmp_path / "out"
    assert cli("embed", run, photos, "--out", embedded)[0] == 0
    assert cli("export", run, "--format", kind, head, "--out", out)[0] == 0
    saved = checkpoint_of(run)
    weight, bias = (saved[f"encoder.head.{name}"].numpy() for name in ("weight", "bias"))
    for expected_D, name in zip(np.load(embedded), ("row-2.png", "tall.jpg"), strict=True):
        found = run_card(out, photos / name, is_fresh)
        if head == "--no-head":
            found = weight @ found + bias
            found /= np.linalg.norm(found)
        assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
        assert found @ expected_D > 0.9999, name


@torch.no_grad()
def test_safetensors_come_back_and_know_where_they_are_from(
    run: Path, encoder: Encoder, images_BCHW: Tensor, cli: Cli
) -> None:
    assert cli("export", run)[0] == 0
    file = run / "export" / "r01-e0001-safetensors" / "encoder.safetensors"
    ours = build_encoder(load_config([run / "config.yaml"]).encoder, 7).eval()
    load_weights(ours, file)
    assert torch.equal(ours(images_BCHW), encoder(images_BCHW))
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    state = json.loads((run / "checkpoints" / "r01-e0001" / "state.json").read_text())
    assert about["content_hash"] == state["images"]["content_hash"]
    assert json.loads(about["config"])["encoder"]["name"] == "cifar_resnet18"


@torch.no_grad()
@pytest.mark.parametrize("head", ["--head", "--no-head"])
def test_onnx_computes_our_features_for_any_number_of_images(
    run: Path, encoder: Encoder, images_BCHW: Tensor, cli: Cli, head: str
) -> None:
    out = run / f"onnx{head}"
    status, _, said = cli("export", run, "--format", "onnx", head, "--out", out)
    assert status == 0, said
    session = onnxruntime.InferenceSession(out / "encoder.onnx")
    for count in (1, 5):
        images = images_BCHW[:count]
        (features,) = session.run(None, {"images": images.numpy()})
        expected = encoder(images) if head == "--head" else encoder.trunk(images)
        np.testing.assert_allclose(features, expected.numpy(), atol=2e-6)  # seen 6.6e-7


def test_the_card_says_what_it_is(run: Path, cli: Cli) -> None:
    cli("export", run, "--out", run / "card")
    card = (run / "card" / "README.md").read_text()
    state = json.loads((run / "checkpoints" / "r01-e0001" / "state.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert state["images"]["content_hash"] in card
    assert "after 1 of 1 epochs of round 1 of 1" in card
    assert f"| 1 | 48 | {100 * summary['rounds'][1]['consistency']:.1f} |" in card
    assert "  name: cifar_resnet18" in card


def test_a_run_starts_from_exported_weights(run: Path, tmp_path: Path, cli: Cli) -> None:
    cli("export", run, "--out", tmp_path / "weights")
    file = tmp_path / "weights" / "encoder.safetensors"
    arguments = (
        "train",
        "--config",
        "configs/debug.yaml",
        *QUICK,
        f"run.root={tmp_path}",
        "encoder.name=cifar_resnet18",
        "encoder.feature_dim=16",
        "optim.lr=1e-9",
        f"encoder.weights={file}",
    )
    status, said, _ = cli(*arguments)
    assert (status, f"weights of {file}" in said) == (0, True)
    before, after = checkpoint_of(run), checkpoint_of(tmp_path / "debug")
    name = "encoder.trunk.conv1.weight"
    assert (before[name] - after[name]).abs().max() < 1e-6
    status, _, said = cli(*arguments[:-3], "name=other", "encoder.name=small", arguments[-1])
    assert (status, "does not fit the encoder" in said) == (2, True)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere is no run folder"),
        (["RUN", "--format", "keras"], "keras is not one of: torchvision, timm, safetensors"),
        (["RUN", "--checkpoint", "r09-e0001"], "there is no checkpoint"),
    ],
)
def test_what_cannot_be_exported_gets_a_sentence(
    run: Path, cli: Cli, arguments: list[str], sentence: str
) -> None:
    given = [str(run) if argument == "RUN" else argument for argument in arguments]
    status, _, said = cli("export", *given)
    assert status == 2
    assert sentence in said


def test_an_encoder_torchvision_does_not_have_is_refused_to_it(tmp_path: Path, cli: Cli) -> None:
    train_here(tmp_path, *QUICK)
    status, _, said = cli("export", tmp_path / "debug", "--format", "torchvision")
    assert (status, "encoder.name=tiny is no model of torchvision's" in said) == (2, True)
    assert not (tmp_path / "debug" / "export").exists()
