"""`and-dist prepare` as a person types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from and_dist.data.index import open_manifest
from tests.conftest import Cli
from tests.pictures import cut_pixels, save_pictures
from tests.unit.data.preparing import sides


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_pictures(tmp_path / "source", [(40, 30)] * 6, "abc")


def test_the_command_says_what_it_made(tmp_path: Path, source: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    status, said, errors = cli(
        "prepare", source, "--out", out, "--pack", "--resize", 8, "--workers", 1
    )
    assert (status, errors) == (0, "")
    assert f"{out}/train: 6 images, 3 classes" in said.replace("\n", "")
    assert sides(open_manifest(out / "train")) == [(8, 11)] * 6


def test_the_command_says_where_the_bad_images_are_listed(
    tmp_path: Path, source: Path, cli: Cli
) -> None:
    out = tmp_path / "out"
    cut_pixels(source / "a" / "1.jpg")
    arguments = ("prepare", source, "--out", out, "--verify", "--workers", 1)
    status, _, errors = cli(*arguments)
    assert status == 2
    assert f"and-dist: {source}/a/1.jpg: " in errors
    assert "cut short" in errors
    status, said, _ = cli(*arguments, "--bad-images", "skip")
    assert status == 0
    assert "train: 5 images, 3 classes" in said
    assert f"left out, and why: {out}/train/bad_images.txt" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["SOURCE", "--raw", "64", "--pack"], "--raw stores pixels, --pack and --resize store"),
        (["SOURCE", "--resize", "64"], "--resize needs --pack"),
        (["SOURCE", "--pack", "--resize", "64", "--quality", "0"], "--quality 0 is not one of"),
        (["SOURCE", "--pack", "--quality", "90"], "--quality needs --resize"),
        (["--download", "cifar10", "--raw", "64"], "--download cifar10 comes as pixels"),
        (["SOURCE", "--bad-images", "keep"], "--bad-images keep is not one of: stop, skip"),
        ([], "say either SOURCE or --download NAME"),
        (["SOURCE", "--download", "cifar10"], "say either SOURCE or --download NAME"),
        (["--download", "nothing"], "--download nothing is not one of: cifar10, cifar100, svhn"),
        (["/nowhere"], "/nowhere does not exist"),
    ],
)
def test_bad_input_gets_a_sentence_and_leaves_nothing(
    tmp_path: Path, source: Path, cli: Cli, arguments: list[str], sentence: str
) -> None:
    given = [str(source) if word == "SOURCE" else word for word in arguments]
    status, _, errors = cli("prepare", *given, "--out", tmp_path / "out")
    assert status == 2
    assert errors.startswith(f"and-dist: {sentence}")
    assert not (tmp_path / "out").exists()


def test_an_out_that_cannot_be_a_folder_gets_a_sentence(
    tmp_path: Path, source: Path, cli: Cli
) -> None:
    (tmp_path / "file").write_text("here already")
    status, _, errors = cli("prepare", source, "--out", tmp_path / "file" / "out", "--workers", 1)
    assert status in (1, 2)
    assert errors.startswith("and-dist: ")
