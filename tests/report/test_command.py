"""`and-dist report`: what it writes, and what it says where something is missing."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from and_dist.checkpoint.bank_reader import StoredBank
from and_dist.checkpoint.reader import open_checkpoint
from and_dist.config.schema import EvaluationConfig
from and_dist.distributed.world import open_world
from and_dist.evaluation.neighbourhood_stats import by_entropy
from and_dist.report.build import gather
from and_dist.report.checkpoint_views import Findings
from and_dist.report.misclassified import find_mistakes
from and_dist.report.neighbourhood_examples import load_neighbourhoods
from and_dist.report.run_history import read_history
from and_dist.runs.console import Display
from and_dist.utils.progress import Advance, silently
from tests.conftest import Cli
from tests.report.runs import CLASSES, command

pytestmark = pytest.mark.whole_run


@pytest.fixture(scope="module")
def findings(labelled: Path) -> Findings:
    with open_world("cpu") as world:
        found = gather(read_history(labelled), world, Display(is_shown=False).phase)
    assert found is not None
    return found


@pytest.fixture
def copied(labelled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(labelled, tmp_path / "labelled"))


def report(run: Path, tmp_path: Path, *more: object) -> str:
    command("report", run, "--out", tmp_path / "page.html", *more)
    return (tmp_path / "page.html").read_text().replace("<wbr>", "")


def data_of(page: str) -> Any:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return json.loads(text)


def test_examples_are_the_anchors_of_the_checkpoints(labelled: Path, findings: Findings) -> None:
    """Against the tables themselves: entropies ascend, bands lie where they should."""
    assert [table.round_index for table in findings.rounds] == [1, 2]
    trained = open_checkpoint(labelled)
    with open_world("cpu") as world:
        table = load_neighbourhoods(trained, world)
    anchors = table.anchors_A.tolist()
    newest = findings.rounds[-1]
    assert newest.cut == table.entropy_N[anchors].max()
    width = round(0.1 * len(anchors))
    for example in newest.examples:
        place = anchors.index(example.row)
        assert example.entropy == table.entropy_N[example.row]
        assert list(example.neighbours) == table.neighbours_NK[example.row].tolist()
        first = {"low": 0, "middle": (len(anchors) - width) // 2, "high": len(anchors) - width}
        assert 0 <= place - first[example.band] < width
    named = table.neighbours_NK[anchors].flatten().bincount(minlength=len(table.entropy_N))
    assert newest.hubs[0][1] == named.max()
    assert all(named[row] == count for row, count in newest.hubs)


def test_mistakes_are_those_of_the_votes(
    labelled: Path, findings: Findings, tmp_path: Path
) -> None:
    """`and-dist evaluate --knn` counts as many."""
    command("evaluate", labelled, "--knn")
    (file,) = labelled.glob("evaluation/*/knn.json")
    of_bank = json.loads(file.read_text())["of"]["bank"]
    mistakes = findings.mistakes
    assert mistakes is not None
    assert mistakes.num_images == of_bank["images"] == 24
    assert mistakes.num_wrong == round((1 - of_bank["top1"]) * 24)
    near = [mistake.similarity for mistake in mistakes.nearest]
    far = [mistake.similarity for mistake in mistakes.farthest]
    assert near == sorted(near, reverse=True)
    assert far == sorted(far)
    page = report(labelled, tmp_path)
    assert "kNN by the bank, K 20, tau 0.1" in page


@pytest.mark.parametrize(("wrong", "nearest", "farthest"), [(5, 5, 0), (20, 12, 8), (30, 12, 12)])
def test_no_mistake_is_among_the_nearest_and_the_farthest(
    labelled: Path, wrong: int, nearest: int, farthest: int
) -> None:
    """Rows of the bank are their own nearest neighbours, so those of another label are wrong."""
    bank, rows = StoredBank(open_checkpoint(labelled).checkpoint), torch.arange(wrong)
    labels_N = torch.arange(bank.num_rows) % len(CLASSES)
    others_Q = (labels_N[rows] + 1) % len(CLASSES)
    settings = EvaluationConfig(knn=1)
    queries_QD = bank.take(rows)
    found = find_mistakes(rows.tolist(), queries_QD, others_Q, labels_N, bank, settings)
    shown = [mistake.row for mistake in (*found.nearest, *found.farthest)]
    assert found.num_wrong == wrong
    assert (len(found.nearest), len(found.farthest)) == (nearest, farthest)
    assert len(shown) == len(set(shown))


def rename_checkpoint(checkpoint: Path, name: str) -> None:
    """A folder that was only moved is a user's copy; its state has to give it the name as well."""
    state = json.loads((checkpoint / "state.json").read_text()) | {"name": name}
    del state["sha256"]
    state["sha256"] = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    (checkpoint / "state.json").write_text(json.dumps(state))
    checkpoint.rename(checkpoint.with_name(name))


def test_a_checkpoint_that_goes_while_it_is_read_is_followed_by_the_next(copied: Path) -> None:
    """As training prunes it."""
    checkpoints = copied / "checkpoints"

    @contextmanager
    def phase(what: str) -> Iterator[Advance]:
        if what == "attention" and (checkpoints / "r02-e0002").exists():
            rename_checkpoint(checkpoints / "r02-e0002", "r02-e0003")
            (checkpoints / "latest").write_text("r02-e0003")
        yield silently

    with open_world("cpu") as world:
        found = gather(read_history(copied), world, phase)
    assert found is not None
    assert found.checkpoint == "r02-e0003"
    assert found.notes == ()


def test_a_run_that_has_not_trained_yet_has_a_page(copied: Path, tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "summary.json"):
        (copied / name).unlink()
    shutil.rmtree(copied / "checkpoints")
    page = report(copied, tmp_path)
    assert "not trained yet" in page
    assert "No checkpoint was looked at yet" in page


def test_a_damaged_checkpoint_is_left_out_and_named(copied: Path, tmp_path: Path) -> None:
    file = next((copied / "checkpoints" / "r01-e0002").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    page = report(copied, tmp_path)
    assert re.search(r"checkpoint \S+r01-e0002 is damaged: .*: its content is not what", page)
    assert [entry["round"] for entry in data_of(page)["rounds"]] == [2]


def test_behind_a_damaged_newest_checkpoint_is_another(copied: Path, tmp_path: Path) -> None:
    for folder in (copied / "checkpoints").glob("r02-*"):
        (folder / "state.json").write_text("torn")
    page = report(copied, tmp_path)
    assert "r02-e0002 cannot be read" in page
    assert "pictures of checkpoint r01-e0002" in page


def test_a_lost_pointer_hides_no_checkpoint(copied: Path, tmp_path: Path) -> None:
    (copied / "checkpoints/latest").unlink()
    assert "pictures of checkpoint r02-e0002" in report(copied, tmp_path)


def test_images_that_are_gone_leave_the_figures(copied: Path, tmp_path: Path, images: Path) -> None:
    text = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(text.replace(str(images / "train"), "/gone"))
    page = report(copied, tmp_path)
    assert "no pictures: data.train=/gone" in page
    assert data_of(page)["pictures"] == {}
    assert 'data-chart="pairs"' in page


def test_other_images_in_their_place_are_not_shown(
    copied: Path, tmp_path: Path, images: Path
) -> None:
    text = (copied / "config.yaml").read_text()
    other = str(images / "test")
    (copied / "config.yaml").write_text(text.replace(str(images / "train"), other))
    assert f"data.train={other} holds other images than those trained on" in report(
        copied, tmp_path
    )


def test_the_page_is_written_into_the_run_folder(copied: Path) -> None:
    command("report", copied)
    assert (copied / "report.html").stat().st_size < 15_000_000


def test_consistency_of_the_page_is_that_of_the_labels(labelled: Path) -> None:
    """The slides' observation, from the tables and the labels alone."""
    from and_dist.data.datasets import load_train_and_test

    history = read_history(labelled)
    images, _ = load_train_and_test(history.config.data)
    with open_world("cpu") as world:
        table = load_neighbourhoods(open_checkpoint(labelled), world)
    labels_N = torch.tensor(images.labels_N)
    assert history.last("discovery")["consistency_by_entropy"] == by_entropy(table, labels_N)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere",), "nowhere is no run folder: it has no config.yaml"),
        (("RUN", "--compare", "nowhere"), "nowhere is no run folder"),
        (("RUN", "--compare", "RUN"), "it is the run itself, or named twice"),
        (("RUN", "--follow", "--out", "x.html"), "--follow serves a page and writes none"),
        (("RUN", "--follow", "--port", "70000"), "--port 70000"),
        (("RUN", "--follow", "--every", "0"), "--every 0"),
    ],
)
def test_bad_input_is_a_sentence(
    cli: Cli, labelled: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    status, _, said = cli("report", *(str(labelled) if a == "RUN" else a for a in arguments))
    assert status == 2
    assert sentence in said
    assert "Traceback" not in said
