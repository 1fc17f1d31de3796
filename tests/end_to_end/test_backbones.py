"""Networks that others have written are trained, looked at, and handed on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from and_dist import load, load_encoder
from tests.backbones import BACKBONES, Backbone
from tests.conftest import Cli
from tests.end_to_end.test_export_command import run_card
from tests.pictures import picture, save

TWO_STEPS = (
    "data.limit=32",
    "data.limit_test=16",
    "optim.batch_size=16",
    "curriculum.rounds=1",
    "curriculum.epochs=1",
    "encoder.feature_dim=16",
    "evaluation.knn=5",
    "optim.lr=0.01",
)
QUICK = ("torchvision/vit_b_16", "timm/convnext_atto")

OWN = """
from torch import nn

def tower(width=8):
    layers = nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
    return nn.Sequential(*layers)
"""


def trained(cli: Cli, root: Path, *overrides: str) -> Path:
    given = *TWO_STEPS, f"run.root={root}", "name=run", *overrides
    status, _, said = cli("train", "--config", "configs/debug.yaml", "--quiet", *given)
    assert status == 0, said
    return root / "run"


def of(backbone: Backbone) -> tuple[str, ...]:
    return (
        f"encoder.name={backbone.name}",
        f"encoder.options={json.dumps(backbone.options)}",
        f"data.image_size={backbone.side}",
    )


@pytest.mark.parametrize(
    "backbone",
    [
        pytest.param(b, id=b.name, marks=() if b.name in QUICK else pytest.mark.nightly)
        for b in BACKBONES
    ],
)
@pytest.mark.thorough
def test_a_network_of_the_page_is_trained_evaluated_and_exported(
    cli: Cli, tmp_path: Path, backbone: Backbone
) -> None:
    run = trained(cli, tmp_path, *of(backbone), "encoder.head=mlp", "encoder.hidden_dim=20")
    steps = [r for r in read_lines(run) if r["event"] == "step"]
    assert [r["step"] for r in steps] == [1, 2, 3, 4]
    assert all(np.isfinite(r["loss"]) for r in steps)
    quick = "evaluation.linear.epochs=1", "evaluation.linear.milestones=[]"
    status, shown, said = cli("evaluate", run, "--knn", "--linear", *quick)
    assert status == 0, said
    assert f"stage{backbone.stages}" in shown
    assert cli("report", run)[0] == 0
    save(tmp_path / "images" / "one.png", picture(3, (40, 40)))
    embedded = tmp_path / "features.npy"
    assert cli("embed", run, tmp_path / "images", "--out", embedded)[0] == 0
    kind = backbone.name.partition("/")[0]
    for head in ("--head", "--no-head"):
        out = tmp_path / f"export{head}"
        status, _, said = cli("export", run, "--format", kind, head, "--out", out)
        assert status == 0, said
        found = run_card(out, tmp_path / "images" / "one.png", is_fresh=False)
        assert np.isfinite(found).all()
        if head == "--head":
            assert found @ np.load(embedded)[0] > 0.9999


def test_a_network_of_ones_own_is_opened_by_those_who_trust_it(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_towers.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = trained(cli, tmp_path, "encoder.name=my_towers:tower", "encoder.options={width: 6}")
    for command in (
        ("evaluate", run, "--knn"),
        ("report", run),
        ("export", run),
        ("embed", run, tmp_path, "--out", tmp_path / "features.npy"),
    ):
        status, _, said = cli(*command)
        assert (status, "add --trust if you trust it" in said) == (2, True), said
    save(tmp_path / "images" / "one.png", picture(3, (40, 40)))
    with pytest.raises(ValueError, match="add --trust"):
        load(run)
    [feature_D] = load(run, trust=True).embed([tmp_path / "images" / "one.png"])
    status, _, said = cli("export", run, "--trust", "--out", tmp_path / "out")
    assert status == 0, said
    exported = tmp_path / "out" / "encoder.safetensors"
    with pytest.raises(ValueError, match="add --trust"):
        load_encoder(exported)
    assert load_encoder(exported, trust=True).head.out_features == len(feature_D)


def read_lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_begins_with_the_weights_of_another(cli: Cli, tmp_path: Path) -> None:
    first = trained(cli, tmp_path / "first", "encoder.name=tiny")
    given = *TWO_STEPS, f"run.root={tmp_path}/second", f"encoder.weights={first}"
    other = "encoder.name=tiny", "optim.layer_decay=0.5", "evaluation.baselines=true"
    status, shown, said = cli("train", "--config", "configs/debug.yaml", *given, *other)
    assert status == 0, said
    assert f"weights of {first}/checkpoints/r01-e0001\n" in shown
    before = json.loads((first / "summary.json").read_text())["rounds"][-1]["knn"]
    after = json.loads((tmp_path / "second" / "debug" / "summary.json").read_text())
    assert after["random"]["knn"] == pytest.approx(before)
    other = "encoder.name=small", "name=other"
    status, _, said = cli("train", "--config", "configs/debug.yaml", *given, *other)
    assert status == 2
    assert "does not fit the encoder: it lacks trunk.1.running_mean" in said
