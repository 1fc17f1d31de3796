"""Configs that are proposed for a user's own images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from and_dist.config.load import load_config
from and_dist.config.schema import Config
from and_dist.data.survey import Survey
from and_dist.planning.proposal import as_yaml, has_gpu, name_of_source, propose
from tests.conftest import Cli
from tests.pictures import save_pictures

PHOTOS = Survey("photos", None, 3_000, ("a", "b", "c"), 3_000, 4_000, True)


def config(found: Survey, is_on_gpu: bool = False, **given: Any) -> Config:
    return load_config([], [], propose(found, is_on_gpu, given, memory_gb=16).layer)


def test_photographs_on_a_cpu() -> None:
    ours = config(PHOTOS)
    assert (ours.name, ours.data.train, ours.data.test) == ("photos", "photos", None)
    assert (ours.encoder.name, ours.data.image_size, ours.data.holdout) == ("small", 32, 0.1)
    assert (ours.data.cache_side, ours.data.bad_images, ours.data.flip) == (64, "skip", True)
    needed = 3 * 64 * 64 * 4 / 3 * 3_000 / 1e9
    assert needed < ours.data.cache_gb < 2 * needed + 0.1


def test_photographs_on_a_gpu() -> None:
    ours = config(PHOTOS, is_on_gpu=True)
    assert (ours.encoder.name, ours.data.image_size, ours.data.test_resize) == (
        "resnet18",
        224,
        256,
    )
    small = config(replace(PHOTOS, height=32, width=32), is_on_gpu=True)
    assert (small.encoder.name, small.data.image_size) == ("cifar_resnet18", 32)
    assert small.data.cache_gb == 0


def test_weights_that_exist_are_trained_by_small_steps() -> None:
    ours = config(PHOTOS, **{"encoder.weights": "resnet18.pth"})
    assert (ours.optim.name, ours.optim.lr) == ("adamw", 1e-4)
    ours = config(PHOTOS, **{"encoder.weights": "resnet18.pth", "optim.lr": 0.002})
    assert (ours.optim.name, ours.optim.lr) == ("adamw", 0.002)
    assert config(PHOTOS).optim.name == "sgd"


@pytest.mark.parametrize("rows", [1, 2, 9, 30, 300, 3_000, 10**5, 10**7])
@pytest.mark.parametrize("is_on_gpu", [False, True])
def test_any_number_of_images_gets_a_config(rows: int, is_on_gpu: bool) -> None:
    ours = config(replace(PHOTOS, num_images=rows), is_on_gpu)
    assert 4 <= ours.curriculum.epochs <= 200
    assert 8 <= ours.optim.batch_size <= max(8, rows / 8)
    assert all(0 < at <= ours.curriculum.epochs for at in ours.optim.milestones)
    assert ours.data.cache_gb <= 4
    assert (ours.data.holdout > 0) == (rows >= 100)


@pytest.mark.parametrize("side", [1, 7, 28, 47, 100, 20_000])
def test_any_size_of_image_gets_a_config(side: int) -> None:
    for is_on_gpu in (False, True):
        assert config(replace(PHOTOS, height=side, width=side), is_on_gpu).data.image_size >= 8


def test_unlabelled_images_hold_none_out_and_named_test_images_are_used() -> None:
    assert config(replace(PHOTOS, class_names=())).data.holdout == 0
    beside = config(replace(PHOTOS, train="photos/train", test="photos/val"))
    assert (beside.data.test, beside.data.holdout, beside.name) == ("photos/val", 0, "photos")


def test_what_is_given_stands_and_the_rest_fits_it() -> None:
    given = {"curriculum.epochs": 10, "curriculum.rounds": 1, "data.image_size": 64}
    ours = config(PHOTOS, **given)
    assert (ours.curriculum.epochs, ours.curriculum.rounds, ours.data.image_size) == (10, 1, 64)
    assert (ours.optim.milestones, ours.data.cache_side) == ((6, 8), 128)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("photos/", "photos"),
        ("my photos & more", "my-photos-more"),
        ("/a/b/train", "b"),
        ("/data/images", "data"),
        ("Ünïcödé", "n-c-d"),
        ("写真", "own"),
    ],
)
def test_a_run_is_named_after_its_folder(source: str, name: str) -> None:
    assert name_of_source(source) == name
    load_config([], [f"name={name}"])


def test_a_proposal_is_written_as_a_config_of_equal_values(tmp_path: Path) -> None:
    for found in (PHOTOS, replace(PHOTOS, train="a: b # c'd", class_names=(), num_images=7)):
        proposal = propose(found, False, {}, memory_gb=16)
        written = as_yaml(proposal, found)
        (tmp_path / "mine.yaml").write_text(written)
        assert load_config([tmp_path / "mine.yaml"]) == load_config([], [], proposal.layer)
        assert all("  # " in line for line in written.splitlines()[1:] if line[-1] != ":")


def test_init_prints_the_config_that_train_would_take(tmp_path: Path, cli: Cli) -> None:
    for label in ("a", "b"):
        save_pictures(tmp_path / "photos" / label, [(30, 20)] * 3)
    folder = tmp_path / "photos"
    status, out, _ = cli("init", folder, "encoder.name=tiny", "run.device=cpu")
    assert status == 0
    (tmp_path / "mine.yaml").write_text(out)
    ours = load_config([tmp_path / "mine.yaml"])
    assert (ours.encoder.name, ours.data.train, ours.run.device) == ("tiny", str(folder), "cpu")
    assert "name: tiny" in out
    assert "# as given" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        (["data.train=nowhere"], "names no images: and-dist init FOLDER"),
        (["shapes/train", "encoder.nam=tiny"], "did you mean encoder.name"),
        (["shapes/train", "photos"], "'photos' is neither key=value nor the first argument"),
    ],
)
def test_init_refuses_in_a_sentence(cli: Cli, arguments: list[str], said: str) -> None:
    status, out, error = cli("init", *arguments)
    assert (status, out) == (2, "")
    assert said in error


def test_a_gpu_is_seen_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_gpu("cuda", {})
    assert not has_gpu("cpu", {})
    monkeypatch.setattr(
        Path, "iterdir", lambda *_: iter([Path(f"/dev/nvidia{at}") for at in "0123"])
    )
    assert has_gpu("auto", {})
    assert has_gpu("auto", {"CUDA_VISIBLE_DEVICES": "2,3"})
    assert not has_gpu("auto", {"CUDA_VISIBLE_DEVICES": ""})
    assert not has_gpu("auto", {"CUDA_VISIBLE_DEVICES": "-1"})
