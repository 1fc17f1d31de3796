"""The first hour on somebody's own images, from an empty folder to pictures and an encoder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.first_hour import NUM_IMAGES, SHORT, SHOWN, Said, as_page, first_hour

pytestmark = [pytest.mark.whole_run, pytest.mark.thorough]
PAGE = Path("docs/first-hour.md")


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Said]]:
    """The folder, and what each command has said; of one that is repeated, the second time."""
    folder = tmp_path_factory.mktemp("hour")
    said = first_hour(folder, *SHORT)
    again = {
        "again" if one.command in {s.command for s in said[:at]} else one.command: one
        for at, one in enumerate(said)
    }
    return folder, again


def test_it_takes_no_other_key_and_leaves_what_was_promised(
    hour: tuple[Path, dict[str, Said]],
) -> None:
    folder, said = hour
    refused = {command for command, one in said.items() if one.status}
    assert refused == {"and-dist train", "and-dist evaluate runs/photos --knn"}
    assert all("Traceback" not in one.output for one in said.values())
    for name in ("photos", "sorted"):
        assert (folder / "runs" / name / "report.html").stat().st_size > 10_000
    with Image.open(folder / "sheet.png") as sheet:
        assert min(sheet.size) > 200
    assert np.load(folder / "features.npy").shape == (NUM_IMAGES + 2, 128)
    assert (folder / "encoder").is_dir()


def test_it_says_what_it_found_and_what_it_will_do(hour: tuple[Path, dict[str, Said]]) -> None:
    _, said = hour
    assert said["and-dist train"].output.startswith("and-dist: say what to train on")
    flat = said["and-dist train photos " + " ".join(SHORT)].output
    assert f"photos: {NUM_IMAGES + 2} images, " in flat
    assert "encoder.name=small" in flat
    assert "curriculum.epochs=2                as given" in flat
    assert re.search(r"it will take about \d+:\d\d on this machine", flat)
    ignored = "1 hidden, 1 .xmp, 1 .db, 1 .mov, 1 .txt, 1 pipe or device, 1 folder that is linked"
    found = next(line for line in flat.splitlines() if line.startswith("ignored in photos"))
    assert sorted(found.partition(": ")[2].split(", ")) == sorted(f"{ignored} again".split(", "))
    assert flat.count("and-dist: left out ") == 1
    assert "broken.jpg: its data is damaged or cut short" in flat
    assert "neighbour entropy" in flat
    assert "kNN" not in flat.partition("no labels: ")[2].partition("\n")[2]
    sorted_run = said["and-dist train sorted " + " ".join(SHORT)].output
    assert "in 8 class folders" in sorted_run
    assert "data.holdout=0.1" in sorted_run
    assert "(the untrained network) to" in sorted_run
    assert "continuing from runs/photos" in said["again"].output
    assert "`and-dist neighbours runs/photos IMAGE...`" in (
        said["and-dist evaluate runs/photos --knn"].output
    )


def test_labels_were_used_to_test_and_for_nothing_else(hour: tuple[Path, dict[str, Said]]) -> None:
    folder, said = hour
    evaluated = said["and-dist evaluate runs/sorted --knn"].output
    assert "kNN by the bank" in evaluated
    (file,) = (folder / "runs/sorted/evaluation").glob("*/knn.json")
    images = json.loads(file.read_text())["of"]["bank"]["images"]
    assert 10 <= images <= 40


def test_the_page_of_the_docs_shows_the_commands_of_the_script(
    hour: tuple[Path, dict[str, Said]],
) -> None:
    """Figures and the lengths of a run differ; the commands and the first lines do not."""
    folder, said = hour
    page = PAGE.read_text()
    shown = [line for line in page.splitlines() if line.startswith("$ ")]
    ours = [line for line in as_page(list(said.values()), folder).splitlines() if line[:2] == "$ "]
    assert {line.replace(" ".join(SHORT), " ".join(SHOWN)) for line in ours} == set(shown)
    for command in ("and-dist train", "and-dist init photos"):
        assert said[command].output in page
