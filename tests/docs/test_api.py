"""Hold the public API: lazy, typed, documented, and as its page says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import and_dist
from and_dist.config.schema import Config
from tests.checks import api_page
from tests.conftest import Cli


def test_the_page_is_what_the_docstrings_say() -> None:
    assert api_page.render() == api_page.PAGE.read_text()


@pytest.mark.whole_run
def test_importing_and_dist_loads_no_torch() -> None:
    program = "import sys, and_dist; assert 'torch' not in sys.modules; dir(and_dist)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_public_name_is_there_and_others_are_not() -> None:
    assert set(and_dist.__all__) <= set(dir(and_dist))
    for name in and_dist.__all__:
        found = getattr(and_dist, name)
        assert "Example:" in (found.__doc__ or ""), name
    with pytest.raises(
        AttributeError, match="and_dist has no 'bank'; it has: MemoryBank, discover"
    ):
        _ = and_dist.bank


@pytest.mark.thorough
def test_a_loaded_run_embeds_files_pictures_and_pixels_alike(sandbox: Path) -> None:
    run = and_dist.load(sandbox / "runs/demo")
    rows = [0, 7, 150]
    by_picture = run.embed(run.pictures(rows))
    assert by_picture.shape == (3, 128)
    assert torch.allclose(by_picture.norm(dim=1), torch.ones(3), atol=1e-5)
    pixels = [np.asarray(picture) for picture in run.pictures(rows)]
    assert torch.equal(run.embed(pixels), by_picture)
    by_hand = run.encoder(run.preprocess(pixels)).detach()
    assert torch.allclose(by_hand, by_picture, atol=1e-6)
    by_file = run.embed([sandbox / "mine.jpg", str(sandbox / "mine.jpg")])
    assert torch.equal(by_file[0], by_file[1])
    assert repr(run).startswith("<run demo, checkpoint r04-e0001")


@pytest.mark.thorough
def test_neighbours_of_a_loaded_run_are_those_of_the_command(sandbox: Path, cli: Cli) -> None:
    image = sandbox / "mine.jpg"
    (near,) = and_dist.load(sandbox / "runs/demo").neighbours([image], count=4)
    status, out, _ = cli("neighbours", sandbox / "runs/demo", image, "--count", 4, "--json")
    assert status == 0
    (found,) = json.loads(out)["images"]
    assert [one["row"] for one in found["neighbours"]] == [one.row for one in near]
    assert near[0].similarity == pytest.approx(found["neighbours"][0]["similarity"], abs=1e-5)
    assert near[0].label is not None


@pytest.mark.thorough
def test_the_bank_of_a_loaded_run_is_whole(sandbox: Path) -> None:
    bank = and_dist.load(sandbox / "runs/demo").bank
    assert (bank.start, bank.stop, bank.num_rows) == (0, 200, 200)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no images were given"),
        (["mine.jpg", Image.new("RGB", (4, 4))], "give files alone"),
        ([torch.zeros(3, 4, 4).numpy()], r"image 0 is float32 of shape \[3, 4, 4\]; pixels are"),
    ],
)
@pytest.mark.thorough
def test_what_is_no_image_is_refused(sandbox: Path, given: Any, message: str) -> None:
    run = and_dist.load(sandbox / "runs/demo")
    with pytest.raises(ValueError, match=message):
        run.embed(given)


@pytest.mark.thorough
def test_other_bad_input_of_a_loaded_run_is_refused(sandbox: Path) -> None:
    run = and_dist.load(sandbox / "runs/demo")
    with pytest.raises(ValueError, match="count=201: the run has 200 rows"):
        run.neighbours([sandbox / "mine.jpg"], count=201)
    with pytest.raises(ValueError, match="is no run folder"):
        and_dist.load(sandbox / "photos")
    for row in (-1, 200):
        with pytest.raises(ValueError, match=f"row {row}: the run has rows 0 to 199"):
            run.pictures([row])
        with pytest.raises(ValueError, match="rows 0 to 199"):
            run.files([row])
    assert run.files([3]) == ["row 3 of shapes/train"]
    (sandbox / "bad.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad\.jpg"):
        run.embed([sandbox / "bad.jpg"])


@pytest.mark.thorough
def test_an_exported_encoder_is_that_of_the_run(sandbox: Path, tmp_path: Path, cli: Cli) -> None:
    images_BCHW = torch.randn(2, 3, 32, 32)
    wanted = and_dist.load_encoder(sandbox / "runs/demo")(images_BCHW)
    for more, width in (((), 128), (("--no-head",), 256)):
        out = tmp_path / f"out{width}"
        export = ("export", sandbox / "runs/demo", "--format", "safetensors", "--out", out)
        assert cli(*export, *more)[0] == 0
        found = and_dist.load_encoder(out / "encoder.safetensors")(images_BCHW)
        assert found.shape == (2, width)
        assert width == 256 or torch.equal(found, wanted)


def test_files_that_hold_no_encoder_are_refused(tmp_path: Path) -> None:
    text, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    text.write_text("nothing")
    save_file({"a": torch.zeros(1)}, other)
    for file in (text, other):
        with pytest.raises(ValueError, match="holds no exported encoder"):
            and_dist.load_encoder(file)
    save_file({"a": torch.zeros(1)}, other, {"config": Config().model_dump_json()})
    with pytest.raises(ValueError, match="does not fit its config"):
        and_dist.load_encoder(other)


def test_training_returns_the_summary(tmp_path: Path) -> None:
    short = ("curriculum.rounds=1", "curriculum.epochs=1", "run.threads=1")
    config = and_dist.load_config("debug", f"run.root={tmp_path}", *short)
    summary = and_dist.train(config)
    assert [row["anchors"] for row in summary["rounds"]] == [0, 200]


@pytest.mark.parametrize("name", ["dmo", "../debug", "paper"])
def test_a_name_of_no_config_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"no config {name}|cannot read config"):
        and_dist.load_config(name)
