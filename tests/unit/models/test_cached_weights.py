"""Weights that torchvision and timm publish, from caches as these lay them out."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file

from and_dist.config.load import load_config
from and_dist.config.schema import EncoderConfig
from and_dist.models.cached_weights import find_cached
from and_dist.models.encoders import build_encoder
from and_dist.training.first_weights import load_first_weights

RESNET = torchvision.models.ResNet18_Weights.IMAGENET1K_V1


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of both caches, which are empty."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.fixture
def out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_torchvisions_weights_are_loaded_from_its_cache(caches: Path) -> None:
    theirs = torchvision.models.resnet18()
    file = caches / "torch" / "checkpoints" / Path(RESNET.url).name
    file.parent.mkdir(parents=True)
    torch.save(theirs.state_dict(), file)
    for name in ("torchvision/resnet18", "resnet18"):
        given = [f"encoder.name={name}", "encoder.weights=torchvision/DEFAULT"]
        config = load_config([], given)
        encoder = build_encoder(config.encoder, 1)
        said = load_first_weights(encoder, config)
        assert said == f"weights of {file}, with a fresh head"
        assert torch.equal(encoder.trunk.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


def test_another_normalisation_is_told(caches: Path) -> None:
    file = caches / "torch" / "checkpoints" / Path(RESNET.url).name
    file.parent.mkdir(parents=True)
    torch.save(torchvision.models.resnet18().state_dict(), file)
    given = ["encoder.name=resnet18", "encoder.weights=torchvision/IMAGENET1K_V1"]
    config = load_config([], [*given, "data.mean=[0.5, 0.5, 0.5]"])
    said = load_first_weights(build_encoder(config.encoder, 1), config)
    assert "trained on images of data.mean=[0.485, 0.456, 0.406] data.std=[0.229" in said
    assert said.endswith("this run has [0.5, 0.5, 0.5] and [0.229, 0.224, 0.225]")


@pytest.mark.parametrize("prefix", ["", "timm_model."])
def test_timms_weights_are_loaded_from_the_hubs_cache(caches: Path, prefix: str) -> None:
    theirs = timm.create_model("resnet18")
    repository = caches / "hub" / "models--timm--resnet18.a1_in1k"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    weights = {f"{prefix}{name}": t for name, t in theirs.state_dict().items()}
    save_file(weights, snapshot / "model.safetensors")
    given = ["encoder.name=timm/resnet18", "encoder.weights=timm/resnet18.a1_in1k"]
    config = load_config([], given)
    encoder = build_encoder(config.encoder, 1)
    said = load_first_weights(encoder, config)
    assert said == f"weights of {snapshot / 'model.safetensors'}, with a fresh head"
    assert torch.equal(encoder.trunk.layer1[0].conv1.weight, theirs.layer1[0].conv1.weight)


@pytest.mark.usefixtures("out_of_reach")
@pytest.mark.parametrize(
    ("name", "weights", "where"),
    [
        ("resnet18", "torchvision/IMAGENET1K_V1", "torch/checkpoints/resnet18-f37072fd.pth"),
        (
            "timm/resnet18",
            "timm/resnet18.a1_in1k",
            "hub/models--timm--resnet18.a1_in1k/snapshots/REVISION/model.safetensors",
        ),
    ],
)
def test_without_a_network_it_is_told_where_the_file_belongs(
    caches: Path, name: str, weights: str, where: str
) -> None:
    said = rf"is not on this machine, and its server .* \(no network\): fetch https://.*{where}$"
    with pytest.raises(ValueError, match=said):
        find_cached(weights, EncoderConfig(name=name))
    assert not [path for path in caches.rglob("*") if path.is_file()]


@pytest.fixture
def server() -> Iterator[tuple[str, list[str], bytes]]:
    """An address, the requests that it has had, and what it answers with."""
    requests: list[str] = []
    content = b"weights"

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            requests.append("HEAD")
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            requests.append("GET")
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", requests, content
        http.shutdown()


def test_a_missing_file_is_fetched_once(
    server: tuple[str, list[str], bytes], caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, requests, content = server
    name = f"small-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    seen = SimpleNamespace(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    entry = SimpleNamespace(url=f"{address}/{name}", transforms=lambda: seen)

    class Known(dict[str, Any]):
        """Is like an enumeration."""

        @property
        def __members__(self) -> dict[str, Any]:
            return self

    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: Known(V1=entry))
    for _ in range(2):
        found = find_cached("torchvision/V1", EncoderConfig(name="resnet18"))
        assert found.file == caches / "torch" / "checkpoints" / name
        assert found.file.read_bytes() == content
        assert found.mean == (0.1, 0.2, 0.3)
    assert requests == ["HEAD", "GET"]


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("resnet18", "torchvision/IMAGENET1K_V3", "did you mean IMAGENET1K_V1"),
        ("small", "torchvision/DEFAULT", "encoder.name=small is no model of torchvision's"),
        ("timm/resnet18", "timm/resnet18.a9_in1k", "timm has no such weights; did you mean"),
        ("timm/resnet18", "timm/nothing.like", "timm has no such weights"),
    ],
)
def test_weights_that_nobody_has_published_are_told(name: str, weights: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        find_cached(weights, EncoderConfig(name=name))
