"""`and-dist neighbours` and `and-dist embed`, against the features of the run itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from and_dist.checkpoint.bank_reader import StoredBank
from and_dist.checkpoint.reader import load_encoder, open_checkpoint
from and_dist.data.datasets import load_images
from and_dist.distributed.world import open_world
from and_dist.evaluation.image_reader import ImageReader
from and_dist.evaluation.picture_sheet import COLOURS, FRAME, PICTURE, Layout
from tests.conftest import Cli
from tests.end_to_end.processes import finish, start_ranks
from tests.pictures import cut_pixels, picture, save
from tests.report.runs import CLASSES

pytestmark = pytest.mark.whole_run


@pytest.fixture(scope="module")
def features(labelled: Path) -> np.ndarray:
    """[N, D] of the run's own training images, and the bank's order."""
    trained = open_checkpoint(labelled)
    images = load_images(trained.config.data.train, None, "data.train")
    with open_world("cpu") as world:
        album = ImageReader(images, trained.config.data, world.device)
        rows, found = album.features(range(64), load_encoder(trained, world))
    assert rows == list(range(64))
    return np.asarray(found)


def test_neighbours_are_those_of_a_dense_product(
    cli: Cli, labelled: Path, images: Path, features: np.ndarray
) -> None:
    own = sorted((images / "train").rglob("*.png"))[:2]
    status, shown, said = cli("neighbours", labelled, *own, "--count", 5, "--json")
    assert (status, said) == (0, "")
    answer = json.loads(shown)
    bank_ND = torch.cat([r for _, r in StoredBank(open_checkpoint(labelled).checkpoint).blocks()])
    index = load_images(str(images / "train"), None, "x").index
    for path, one in zip(own, answer["images"], strict=True):
        assert one["image"] == str(path)
        row = next(r for r in range(64) if index.store.name(r) == str(path))
        cosines_N = torch.nn.functional.normalize(bank_ND, dim=1) @ torch.tensor(features[row])
        best = cosines_N.topk(5)
        assert [n["row"] for n in one["neighbours"]] == best.indices.tolist()
        found = [n["similarity"] for n in one["neighbours"]]
        np.testing.assert_allclose(found, best.values, atol=1e-5)
        assert all(n["label"] == Path(n["name"]).parts[0] for n in one["neighbours"])


def test_a_table_and_a_sheet(cli: Cli, labelled: Path, images: Path, tmp_path: Path) -> None:
    """The frames of a sheet say what the table and the folders of the images say."""
    own = sorted((images / "test").rglob("*.png"))[:3]
    sheet = tmp_path / "sheet.png"
    status, shown, _ = cli("neighbours", labelled, *own, "--count", 4, "--sheet", sheet)
    assert status == 0
    assert "nearest training images" in shown
    assert CLASSES[1][:6] in shown
    _, answer, _ = cli("neighbours", labelled, *own, "--count", 4, "--json")
    expected = [
        ["same" if n["label"] == path.parent.name else "other" for n in one["neighbours"]]
        for path, one in zip(own, json.loads(answer)["images"], strict=True)
    ]
    assert {kind for line in expected for kind in line} == {"same", "other"}
    layout = Layout(groups=3, others=4, explanations=3)
    with Image.open(sheet) as drawn:
        assert frames_of(drawn, layout) == expected
        left, top = (at + FRAME for at in layout.place_of_group(0))
        query = drawn.crop((left, top, left + PICTURE, top + PICTURE))
    with Image.open(own[0]) as image:
        whole = image.convert("RGB").resize(query.size, Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(query).astype(int) - whole).mean() < 1


def test_a_query_of_no_class_has_neighbours_without_a_verdict(
    cli: Cli, labelled: Path, images: Path, tmp_path: Path
) -> None:
    known = next((images / "test").rglob("*.png"))
    other = shutil.copy(known, tmp_path / "mine.png")
    sheet = tmp_path / "sheet.png"
    assert cli("neighbours", labelled, other, "--count", 3, "--sheet", sheet)[0] == 0
    with Image.open(sheet) as drawn:
        assert frames_of(drawn, Layout(1, 3, explanations=0)) == [["plain"] * 3]
    status, _, _ = cli("neighbours", labelled, known, other, "--sheet", sheet, "--force")
    assert status == 0
    with Image.open(sheet) as drawn:
        first, second = frames_of(drawn, Layout(2, 8, explanations=4))
    assert "plain" not in first
    assert second == ["plain"] * 8


def test_a_sheet_of_images_without_classes(
    cli: Cli, unlabelled: Path, images: Path, tmp_path: Path
) -> None:
    own = next((images / "test").rglob("*.png"))
    sheet = tmp_path / "sheet.webp"
    assert cli("neighbours", unlabelled, own, "--count", 12, "--sheet", sheet)[0] == 0
    with Image.open(sheet) as drawn:
        assert drawn.size == Layout(1, 12, explanations=0).size


def frames_of(sheet: Image.Image, layout: Layout) -> list[list[str]]:
    """The kinds of frames of all neighbours."""
    names = {ImageColor.getrgb(colour): name for name, colour in COLOURS.items()}
    assert sheet.size == layout.size
    return [
        [
            names[sheet.getpixel(layout.place_of_other(group, at))]  # type: ignore[index]  # RGB
            for at in range(layout.others)
        ]
        for group in range(layout.groups)
    ]


def test_features_of_a_folder_are_those_of_the_run(
    cli: Cli, labelled: Path, images: Path, features: np.ndarray, tmp_path: Path
) -> None:
    status, shown, _ = cli("embed", labelled, images / "train", "--out", tmp_path / "f.npy")
    assert status == 0
    assert "64 features in" in shown
    np.testing.assert_allclose(np.load(tmp_path / "f.npy"), features, atol=1e-6)
    about = json.loads((tmp_path / "f.json").read_text())
    index = load_images(str(images / "train"), None, "x").index
    below = [str(Path(index.store.name(r)).relative_to(images / "train")) for r in range(64)]
    assert about["names"] == below
    assert about["unreadable"] == {}


def test_three_ranks_embed_as_one(
    labelled: Path, images: Path, features: np.ndarray, tmp_path: Path
) -> None:
    ranks = start_ranks(3, "embed", labelled, images / "train", "--out", tmp_path / "f.npy")
    assert [finish(rank)[0] for rank in ranks] == [0, 0, 0]
    np.testing.assert_allclose(np.load(tmp_path / "f.npy"), features, atol=1e-6)


def test_what_cannot_be_read_is_zeros_and_named(cli: Cli, labelled: Path, tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path / "own" / f"{number}.jpg", picture(number, (64, 64)))
    cut_pixels(tmp_path / "own" / "2.jpg")
    (tmp_path / "own" / "1.jpg").write_bytes(b"no image")
    status, _, said = cli("embed", labelled, tmp_path / "own", "--out", tmp_path / "f.npy")
    assert status == 2
    assert "1.jpg" in said
    out = tmp_path / "f.npy"
    status, _, _ = cli("embed", labelled, tmp_path / "own", "--out", out, "--bad-images", "skip")
    assert status == 0
    assert np.load(out).shape == (3, 128)
    about = json.loads((tmp_path / "f.json").read_text())
    assert about["names"] == ["0.jpg", "2.jpg", "3.jpg"]
    assert "1.jpg" in about["left_out"][0]
    assert list(about["unreadable"]) == ["2.jpg"]
    np.testing.assert_allclose(np.linalg.norm(np.load(out), axis=1), [1, 0, 1], atol=1e-5)


def test_pixels_that_are_cut_off_are_a_sentence(cli: Cli, labelled: Path, tmp_path: Path) -> None:
    own = save(tmp_path / "own" / "0.jpg", picture(0, (64, 64)))
    cut_pixels(own)
    status, shown, said = cli("neighbours", labelled, own, "--json")
    assert (status, shown) == (2, "")
    assert f"{own} cannot be decoded" in said
    status, _, said = cli("embed", labelled, own.parent, "--out", tmp_path / "f.npy")
    assert status == 1
    assert "0.jpg" in said


def test_without_the_training_images_rows_are_named(
    cli: Cli, labelled: Path, images: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(labelled, tmp_path / "labelled"))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(images / "train"), "/gone"))
    own = next((images / "test").rglob("*.png"))
    status, shown, _ = cli("neighbours", run, own)
    assert status == 0
    assert "no names: data.train=/gone" in shown
    assert "row " in shown
    status, _, said = cli("neighbours", run, own, "--sheet", tmp_path / "s.png")
    assert status == 2
    assert "are missing or have changed" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("neighbours", "nowhere", "IMAGE"), "nowhere is no run folder"),
        (("neighbours", "RUN", "gone.png"), "gone.png: it cannot be read: No such file"),
        (("neighbours", "RUN", "README.md"), "README.md: its header is of no known image format"),
        (("neighbours", "RUN", "IMAGE", "--count", "65"), "choose 1 to 64"),
        (("neighbours", "RUN", "IMAGE", "--count", "0"), "choose 1 to 64"),
        (("neighbours", "RUN", "IMAGE", "--sheet", "s.gif"), "has to end in .png, .jpg or .webp"),
        (("neighbours", "RUN", "IMAGE", "--sheet", "no/s.png"), "there is no folder no"),
        (
            ("neighbours", "RUN", *["IMAGE"] * 90, "--sheet", "s.webp"),
            "make a picture of 18,306 pixels in height, and .webp has at most 16,383",
        ),
        (("neighbours", "RUN", "IMAGE", "--checkpoint", "r09-e0001"), "there is no checkpoint"),
        (("embed", "RUN", "nowhere", "--out", "f.npy"), "FOLDER=nowhere"),
        (("embed", "RUN", "FOLDER", "--out", "f.csv"), "the name has to end in .npy"),
        (("embed", "RUN", "FOLDER", "--out", "f.npy", "--bad-images", "keep"), "stop, skip"),
    ],
)
def test_bad_input_is_a_sentence(
    cli: Cli, labelled: Path, images: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    image = next((images / "test").rglob("*.png"))
    places = {"RUN": labelled, "FOLDER": images / "test", "IMAGE": image}
    status, _, said = cli(*(places.get(argument, argument) for argument in arguments))
    assert status == 2
    assert sentence in said
    assert "Traceback" not in said
