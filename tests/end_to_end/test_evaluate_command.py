"""`and-dist evaluate` as a person types it, on a run of configs/debug.yaml."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from and_dist.distributed.watchdog import TRY_AGAIN
from and_dist.runs.metrics_file import read_metrics
from and_dist.utils.seals import seal
from tests.conftest import Cli
from tests.end_to_end.processes import finish, start, start_ranks
from tests.ranks.runs import train_here

SHORT = ("evaluation.linear.epochs=2", "evaluation.linear.milestones=[1]")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_here(tmp_path_factory.mktemp("runs"))


def copy_of(run: Path, folder: Path) -> Path:
    """As training left it; other tests have evaluated it meanwhile."""
    return Path(shutil.copytree(run, folder, ignore=shutil.ignore_patterns("evaluation")))


def figures_of(run: Path, kind: str, checkpoint: str = "r02-e0003") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (run / "evaluation" / checkpoint / f"{kind}.json").read_text()
    )
    return found


def test_knn_is_what_training_said(run: Path, cli: Cli) -> None:
    status, said, _ = cli("evaluate", run, "--knn")
    assert status == 0
    last = read_metrics(run / "metrics.jsonl", "round")[-1]
    of = figures_of(run, "knn")["of"]
    assert of["bank"]["top1"] == last["knn_bank"]
    assert of["recomputed"]["top1"] == last["knn"]
    low, high = of["recomputed"]["interval"]
    assert low < last["knn"] < high
    assert of["bank"]["top5"] > of["bank"]["top1"]
    assert "kNN by the bank, K 20, tau 0.1" in said
    assert "crescent" in said
    mean = sum(of["bank"]["per_class"].values()) / 8
    assert mean == pytest.approx(of["bank"]["top1"])  # 96 test images, 12 of each class


def test_what_a_failed_disk_has_kept_is_cleared_by_the_next_evaluation(
    run: Path, cli: Cli, tmp_path: Path
) -> None:
    """The disk published knn.json and failed as its temporary name was to be removed."""
    copied = copy_of(run, tmp_path / "debug")
    assert cli("evaluate", copied, "--knn")[0] == 0
    file = copied / "evaluation/r02-e0003/knn.json"
    kept = file.with_name(".knn.json.0123456789abcdef.unfinished")
    kept.hardlink_to(file)
    assert cli("evaluate", copied, "--knn")[0] == 0
    assert not kept.exists()
    assert figures_of(copied, "knn")["of"]


def test_other_settings_of_the_vote_may_be_given(run: Path, cli: Cli) -> None:
    checkpoint = ("--checkpoint", "r01-e0003")
    assert (
        cli(
            "evaluate",
            run,
            "--knn",
            *checkpoint,
            "evaluation.knn=7",
            "evaluation.knn_temperature=0.07",
        )[0]
        == 0
    )
    found = figures_of(run, "knn", "r01-e0003")
    assert found["protocol"] == {"knn": 7, "knn_temperature": 0.07}
    assert (found["round"], found["test"], found["limit_test"]) == (1, "shapes/test", 96)


@pytest.mark.whole_run
def test_two_workers_find_the_same(run: Path, cli: Cli, tmp_path: Path) -> None:
    alone, together = (copy_of(run, tmp_path / name) for name in ("one", "two"))
    given = ("--knn", "--linear", "--layers", "conv2,fc", *SHORT)
    assert cli("evaluate", alone, *given)[0] == 0
    ends = [finish(rank) for rank in start_ranks(2, "evaluate", together, *given)]
    assert [status for status, _ in ends] == [0, 0], ends
    assert figures_of(alone, "knn")["of"] == figures_of(together, "knn")["of"]
    ours, theirs = (figures_of(folder, "linear") for folder in (alone, together))
    assert list(ours["of"]) == ["conv2", "fc"]
    for layer, of in ours["of"].items():
        assert of["losses"] == pytest.approx(theirs["of"][layer]["losses"], rel=1e-4)
        assert len(of["losses"]) == 2
    assert ours["protocol"]["linear"]["epochs"] == 2


def test_linear_classifiers_are_trained_once(run: Path, cli: Cli, tmp_path: Path) -> None:
    """And then looked at as often as one likes, here by ten crops of larger images."""
    copied = copy_of(run, tmp_path / "debug")
    larger = (*SHORT, "data.test_resize=36")
    _, said, _ = cli("evaluate", copied, "--linear", *larger)
    assert "linear epoch 2/2" in said
    once = figures_of(copied, "linear")
    status, said, _ = cli("evaluate", copied, "--linear", "--ten-crop", *larger)
    assert status == 0
    assert "linear epoch" not in said
    assert "linear conv1, ten crops" in said
    again = figures_of(copied, "linear-ten-crop")
    assert again["ten_crop"] is True
    for layer, of in again["of"].items():
        assert of["losses"] == once["of"][layer]["losses"]
    assert again["test_resize"] == 36
    assert figures_of(copied, "linear") == once, "of one view, as it was"


def test_layers_may_be_looked_at_one_after_the_other(run: Path, cli: Cli, tmp_path: Path) -> None:
    """Their classifiers do not meet, so together they are what all at once would be."""
    apart, at_once = (copy_of(run, tmp_path / name) for name in ("apart", "at_once"))
    for layers in ("conv1", "fc"):
        assert cli("evaluate", apart, "--linear", "--layers", layers, *SHORT)[0] == 0
    assert cli("evaluate", at_once, "--linear", "--layers", "conv1,fc", *SHORT)[0] == 0
    ours, theirs = figures_of(apart, "linear")["of"], figures_of(at_once, "linear")["of"]
    assert ours.keys() == theirs.keys() == {"conv1", "fc"}
    for layer, of in ours.items():
        assert of["losses"] == pytest.approx(theirs[layer]["losses"], rel=1e-5)
    other = ("evaluation.linear.lr=0.5", "--layers", "fc")
    assert cli("evaluate", apart, "--linear", *other, *SHORT)[0] == 0
    assert figures_of(apart, "linear")["of"].keys() == {"fc"}, "another protocol begins anew"


def test_published_crops_are_another_protocol(run: Path, cli: Cli, tmp_path: Path) -> None:
    """Test images are cropped by the same proportion, so there are ten crops of them too."""
    copied = copy_of(run, tmp_path / "debug")
    given = ("--linear", "--layers", "conv1", *SHORT)
    published = "evaluation.linear.crops=published"
    assert cli("evaluate", copied, *given)[0] == 0
    before = figures_of(copied, "linear")
    assert before["protocol"]["linear"]["crops"] == "as_training"
    assert cli("evaluate", copied, *given, published)[0] == 0
    found = figures_of(copied, "linear")
    assert found["protocol"]["linear"]["crops"] == "published"
    assert found["of"]["conv1"]["losses"] != before["of"]["conv1"]["losses"]
    assert cli("evaluate", copied, *given, "--ten-crop")[0] == 2
    assert cli("evaluate", copied, *given, "--ten-crop", published)[0] == 0
    ten = figures_of(copied, "linear-ten-crop")
    assert ten["of"]["conv1"]["losses"] == found["of"]["conv1"]["losses"]


def test_figures_of_before_there_were_published_crops_stay(
    run: Path, cli: Cli, tmp_path: Path
) -> None:
    copied = copy_of(run, tmp_path / "debug")
    assert cli("evaluate", copied, "--linear", "--layers", "conv1", *SHORT)[0] == 0
    before = figures_of(copied, "linear")
    del before["protocol"]["linear"]["crops"]
    file = copied / "evaluation/r02-e0003/linear.json"
    file.write_text(json.dumps(seal(before, file.name)))
    assert cli("evaluate", copied, "--linear", "--layers", "fc", *SHORT)[0] == 0
    found = figures_of(copied, "linear")
    assert found["of"]["conv1"] == before["of"]["conv1"]
    assert found["of"].keys() == {"conv1", "fc"}


def test_what_was_found_is_shown_again(run: Path, cli: Cli, tmp_path: Path) -> None:
    """By the same command, as after a stop within --linear; never of other weights."""
    copied = copy_of(run, tmp_path / "debug")
    _, first, _ = cli("evaluate", copied, "--knn")
    assert "written to" in first
    file = copied / "evaluation/r02-e0003/knn.json"
    found = figures_of(copied, "knn")
    marked = json.loads(file.read_text())
    marked["of"]["bank"]["top1"] = 0.123
    file.write_text(json.dumps(seal(marked, file.name)))
    _, second, _ = cli("evaluate", copied, "--knn")
    assert "evaluated before" in second
    assert "12.3" in second
    file.write_text(json.dumps(seal({**marked, "weights": "of another training"}, file.name)))
    _, third, _ = cli("evaluate", copied, "--knn")
    assert "written to" in third
    assert figures_of(copied, "knn") == found


def test_a_checkpoint_of_another_run_is_refused(run: Path, cli: Cli, tmp_path: Path) -> None:
    copied = copy_of(run, tmp_path / "debug")
    config = copied / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 7"))
    status, _, said = cli("evaluate", copied, "--knn")
    assert status == 2
    assert "r02-e0003 is of another run: seed: 0 -> 7" in said


@pytest.mark.whole_run
def test_a_stall_leaves_its_stacks_and_nothing_that_is_in_the_way(
    run: Path, cli: Cli, tmp_path: Path
) -> None:
    copied = copy_of(run, tmp_path / "debug")
    long = ("evaluation.linear.epochs=2000", "evaluation.linear.milestones=[1]")
    stalled = start("evaluate", copied, "--linear", *long, "run.stall_seconds=0.01")
    status, output = finish(stalled)
    assert status == TRY_AGAIN, output
    assert "Thread" in (copied / "stalls/rank-0.txt").read_text()
    assert not list(copied.glob("evaluation/**/stalls"))
    assert cli("evaluate", copied, "--linear", *SHORT)[0] == 0
    assert figures_of(copied, "linear")["of"].keys() == {"conv1", "conv2", "conv3", "fc"}


@pytest.mark.whole_run
def test_asked_to_stop_within_knn_it_does(run: Path, tmp_path: Path) -> None:
    """It hears the request between two batches, and the same command starts again."""
    copied = copy_of(run, tmp_path / "debug")
    status, output = finish(start("evaluate", copied, "--knn", "run.time_limit=0:01"))
    assert status == TRY_AGAIN, output
    assert "the time limit, with nothing of kNN kept" in output
    assert not (copied / "evaluation/r02-e0003/knn.json").exists()


def test_tables_hold_what_was_evaluated(run: Path, cli: Cli, tmp_path: Path) -> None:
    """In all three forms, beside what the run itself said."""
    copied = copy_of(run, tmp_path / "debug")
    assert cli("evaluate", copied, "--knn", "--linear", *SHORT)[0] == 0
    assert cli("evaluate", copied, "--knn", "evaluation.knn=7", "--linear")[0] == 0
    knn, linear = figures_of(copied, "knn")["of"], figures_of(copied, "linear")["of"]
    last = read_metrics(copied / "metrics.jsonl", "round")[-1]
    expected = {
        "kNN": last["knn"],
        "bank-kNN": last["knn_bank"],
        "kNN, knn=7": knn["recomputed"]["top1"],
        "bank-kNN, knn=7": knn["bank"]["top1"],
        **{f"linear {layer}": of["top1"] for layer, of in linear.items()},
    }
    out = tmp_path / "table.csv"
    assert cli("table", copied, "--format", "csv", "--out", out)[0] == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert {row["column"]: float(row["mean"]) for row in rows} == pytest.approx(
        {name: 100 * share for name, share in expected.items()}, abs=1e-3
    )
    for form in ("markdown", "latex"):
        status, said, _ = cli("table", copied, "--format", form)
        assert status == 0
        for share in expected.values():
            assert f"{100 * share:.1f} (1)" in said
    status, _, said = cli("table", copied, "--format", "word")
    assert (status, "--format word is not one of: markdown, csv, latex" in said) == (2, True)


def test_images_that_cannot_be_read_are_counted_and_do_not_count(cli: Cli, tmp_path: Path) -> None:
    """One of 101 for training and one of 20 for the test."""
    train = folder_of_classes(tmp_path / "train", {"a": 60, "b": 41})
    test = folder_of_classes(tmp_path / "test", {"a": 10, "b": 10})
    for file in (train / "a" / "7.png", test / "b" / "3.png"):
        file.write_bytes(file.read_bytes()[:60])
    given = (
        f"data.train={train}",
        f"data.test={test}",
        "data.limit=null",
        "data.limit_test=null",
        "data.bad_images=skip",
        "method=random",
        "bank.init=features",
    )
    run = train_here(tmp_path, *given)
    status, said, _ = cli("evaluate", run, "--knn", "--linear", *SHORT, "evaluation.knn=101")
    assert status == 0
    assert "19, 1 unreadable" in " ".join(said.split())
    knn = figures_of(run, "knn", "r00-e0000")["of"]
    assert {(of["images"], of["unreadable"]) for of in knn.values()} == {(19, 1)}
    folder = run / "evaluation/r00-e0000"
    assert (folder / "bad_images.txt").read_text().startswith(f"{train}/a/7.png: ")
    assert (folder / "bad_test_images.txt").read_text().startswith(f"{test}/b/3.png: ")
    linear = figures_of(run, "linear", "r00-e0000")["of"]
    assert {(of["images"], of["unreadable"]) for of in linear.values()} == {(19, 1)}


def folder_of_classes(folder: Path, classes: dict[str, int]) -> Path:
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for at in range(count):
            Image.new("RGB", (40, 40), (9 * at, 50, 99)).save(folder / name / f"{at}.png")
    return folder


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "say what to evaluate by: --knn, --linear or both"),
        (["--knn", "data.test=null"], "evaluation needs test images: data.test=FOLDER"),
        (["--knn", "data.limit_test=5"], "has 5 images for 8 classes"),
        (["--knn", "encoder.name=small"], "was trained otherwise: encoder.name: tiny -> small"),
        (["--knn", "data.limit=100"], "was trained otherwise: data.limit: 200 -> 100"),
        (["--linear", "--layers", "conv9"], "conv9: encoder.name=tiny has conv1, conv2, conv3, fc"),
        (["--linear", "--ten-crop"], "data.test_resize = None: it has to be larger"),
        (["--knn", "--ten-crop"], "--ten-crop needs --linear"),
        (["--knn", "--checkpoint", "r09-e0001"], "there is no checkpoint"),
        (["--knn", "--checkpoint", "../b/r00-e0003"], "b/r00-e0003 is no name of a checkpoint of"),
        (["--knn", "--layers", "conv1"], "--layers needs --linear"),
        (["--linear", "evaluation.linear.epochs=0"], "evaluation.linear.epochs = 0 will not do"),
    ],
)
def test_what_is_wrong_is_a_sentence(run: Path, cli: Cli, given: list[str], sentence: str) -> None:
    before = set(run.rglob("*"))
    status, _, said = cli("evaluate", run, *given)
    assert status == 2, said
    assert sentence in said
    assert "Traceback" not in said
    assert set(run.rglob("*")) == before


def test_test_images_must_be_of_known_classes_and_labelled(
    run: Path, cli: Cli, tmp_path: Path
) -> None:
    strange = folder_of_classes(tmp_path / "strange", {"disc": 8, "heart": 2})
    status, _, said = cli("evaluate", run, "--knn", f"data.test={strange}")
    assert (status, "data.test has classes data.train lacks: heart" in said) == (2, True)
    flat = folder_of_classes(tmp_path / "flat", {"": 9})
    status, _, said = cli("evaluate", run, "--knn", f"data.test={flat}")
    assert status == 2
    assert f"evaluation needs labels, and data.test={flat} has none" in said


def test_a_run_without_labels_cannot_be_evaluated(cli: Cli, tmp_path: Path) -> None:
    flat = folder_of_classes(tmp_path / "flat", {"": 24})
    train_here(
        tmp_path,
        f"data.train={flat}",
        "data.test=null",
        "curriculum.rounds=1",
        "curriculum.epochs=1",
        "optim.milestones=[1]",
    )
    status, _, said = cli(
        "evaluate", tmp_path / "debug", "--knn", "data.test=shapes/test", "evaluation.knn=5"
    )
    assert status == 2
    assert f"evaluation needs labels, and data.train={flat} has none" in said
    assert f"without labels, `and-dist neighbours {tmp_path}/debug IMAGE...` shows" in said


def test_more_neighbours_than_images_are_all_images(run: Path, cli: Cli) -> None:
    assert cli("evaluate", run, "--knn", "evaluation.knn=200")[0] == 0
    all_of_them = figures_of(run, "knn")
    status, said, _ = cli("evaluate", run, "--knn", "evaluation.knn=5000")
    assert (status, "evaluated before" in said) == (0, True)
    assert figures_of(run, "knn") == all_of_them
    assert all_of_them["protocol"]["knn"] == 200


def test_a_prepared_set_evaluates_without_a_warning(cli: Cli, tmp_path: Path) -> None:
    folder_of_classes(tmp_path / "photos" / "train", {"a": 12, "b": 12})
    folder_of_classes(tmp_path / "photos" / "test", {"a": 3, "b": 3})
    data = tmp_path / "data"
    assert cli("prepare", tmp_path / "photos", "--out", data)[0] == 0
    status, said, told = cli(
        "train",
        "--config",
        "configs/debug.yaml",
        f"run.root={tmp_path}",
        "method=supervised",
        f"data.train={data}/train",
        f"data.test={data}/test",
        "curriculum.rounds=1",
        "curriculum.epochs=1",
        "optim.milestones=[1]",
    )
    assert status == 0
    assert "Warning" not in said + told
    status, _, told = cli("evaluate", tmp_path / "debug", "--knn")
    assert status == 0
    assert "Warning" not in told


def test_classes_of_which_training_saw_no_image_are_no_accident(cli: Cli, tmp_path: Path) -> None:
    """Rows of class folders lie class by class, so data.limit leaves the last classes out."""
    train = folder_of_classes(tmp_path / "train", {"a": 12, "b": 12, "c": 12})
    test = folder_of_classes(tmp_path / "test", {"a": 3, "b": 3, "c": 3})
    train_here(
        tmp_path,
        f"data.train={train}",
        f"data.test={test}",
        "data.limit=20",
        "curriculum.rounds=1",
        "curriculum.epochs=1",
        "optim.milestones=[1]",
        "evaluation.knn=5",
    )
    status, _, said = cli("evaluate", tmp_path / "debug", "--knn")
    assert status == 2
    assert f"classes of which data.train={train} shows no image (data.limit = 20): c" in said
