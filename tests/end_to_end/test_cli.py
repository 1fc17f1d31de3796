"""What a person types: bad input gets a sentence and status 2, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from and_dist.cli import SECONDS_FOR_THE_FIRST, main
from and_dist.data.unreadable import BadImageError
from and_dist.distributed.launch_env import AllRanksError
from and_dist.runs.summary import BANK_KEYS, ROUND_KEYS
from and_dist.training.recovery import print_traceback_on_error
from slurm.testcluster.cluster import PATIENCE
from tests.conftest import Cli
from tests.end_to_end import processes
from tests.end_to_end.processes import Started
from tests.pictures import save_pictures
from tests.ranks.runs import assert_equal_to_the_bit

DEBUG = ["train", "--config", "configs/debug.yaml"]
QUICK = ["curriculum.epochs=1", "curriculum.rounds=1", "data.limit=48", "data.limit_test=8"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return save_pictures(tmp_path / "images", [(20, 20)] * 6, "ab", ["png"])


def test_supervised_learning_without_labels_is_refused(
    tmp_path: Path, images: Path, cli: Cli
) -> None:
    root, flat = tmp_path / "runs", images / "a"
    options = (f"run.root={root}", f"data.train={flat}", "data.test=null", "method=supervised")
    status, _, said = cli(*DEBUG, *options)
    assert status == 2
    assert f"learns from labels, and data.train={flat} has none; right are class folders" in said
    assert not root.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["bank.dims=3"], "unknown key 'bank.dims'; bank takes: dtype, products"),
        (["curriculum.rounds=0"], "discovers nothing: that is method=instance"),
        (["method=annd"], "method = 'annd' is not one of: and, instance, random, supervised"),
        (["method=random", "bank.init=uniform"], "method=random looks at the first rows"),
        (["method=deepcluster"], "deepcluster.clusters = 10000 are more than the 200 images"),
        (["method=instance_nce"], "instance_nce.negatives = 4096 are more than the 200 images"),
        (["paper=[table 9/AND/MNIST]"], "'table 9/AND/MNIST' is none of the paper's figures"),
        (["encoder.name=alexnt"], "'alexnt' is not one of: tiny, small, cifar_resnet18"),
        (["data.train=/nowhere"], "data.train=/nowhere: /nowhere is not a folder of images"),
        (["data.test=/nowhere"], "data.test=/nowhere: /nowhere is not a folder of images"),
        (["data.limit=20", "curriculum.neighbours=20"], "curriculum.neighbours=20 needs more"),
        (["--config", "none.yaml"], "cannot read config none.yaml"),
        (["discovery.search=Flatt"], "discovery.search='Flatt' is no faiss index"),
        (["run.device=cuda"], "run.device=cuda: local rank 0 has no GPU"),
    ],
)
def test_bad_input_gets_a_sentence_and_leaves_nothing(
    tmp_path: Path, cli: Cli, arguments: list[str], sentence: str
) -> None:
    root = tmp_path / "runs"
    status, _, said = cli(*DEBUG, f"run.root={root}", *arguments)
    assert status == 2
    assert said.startswith("and-dist: ")
    assert sentence in said
    assert "Traceback" not in said
    assert not root.exists()


def test_bad_folders_get_a_sentence(tmp_path: Path, images: Path, cli: Cli) -> None:
    root = tmp_path / "runs"
    options = [*DEBUG, f"run.root={root}", f"data.train={images}"]
    (images / "a" / "notes.png").write_text("hello")
    status, _, said = cli(*options)
    assert (status, "notes.png: its header is of no known" in said) == (2, True)
    (images / "a" / "notes.png").unlink()
    status, _, said = cli(*options, "data.test=shapes/test")
    assert (status, "data.test has classes data.train lacks: bar" in said) == (2, True)
    empty = tmp_path / "empty"
    empty.mkdir()
    status, _, said = cli(*options, f"data.train={empty}")
    assert (status, f"{empty} holds no image" in said) == (2, True)
    assert not root.exists()


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 in the environment: a world needs at least one rank"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' in the environment is not a whole number"),
        ({"WORLD_SIZE": "60", "RANK": "0"}, "has 48 images for 60 ranks"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2 in the environment is not below WORLD_SIZE=2"),
    ],
)
def test_a_world_that_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    cli: Cli,
    environ: dict[str, str],
    sentence: str,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    root = tmp_path / "runs"
    status, _, said = cli(*DEBUG, *QUICK, f"run.root={root}")
    assert status == 2
    assert sentence in said
    assert not root.exists()


def test_what_one_rank_alone_refuses_is_said_once_the_first_has_had_its_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: Cli
) -> None:
    second = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in second.items():
        monkeypatch.setenv(name, value)
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    status, _, said = cli(*DEBUG, f"run.root={tmp_path}", "data.train=/nowhere")
    assert status == 2
    assert said.startswith("and-dist: rank 1: data.train=/nowhere")
    assert waited == [SECONDS_FOR_THE_FIRST]


@pytest.mark.whole_run
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["data.train=/nowhere"], "data.train=/nowhere: /nowhere is not a folder of images"),
        (["optim.lrr=1"], "unknown key 'optim.lrr'"),
        (["--confg", "debug"], "No such option: --confg"),
    ],
)
def test_what_all_ranks_refuse_is_said_once_and_is_the_last_line_of_torchrun(
    tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    process = torchrun(*DEBUG, f"run.root={tmp_path}", *arguments)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    is_of_typer = arguments[0] == "--confg"  # which frames it
    lines = [line for line in said.splitlines() if line.startswith(f"and-dist: {sentence}")]
    assert len(lines) == (0 if is_of_typer else 1)
    assert_ends_with(said, f"and-dist: {sentence}")


@pytest.mark.whole_run
def test_a_fault_of_a_rank_in_training_is_the_last_line_of_torchrun(tmp_path: Path) -> None:
    """The other rank loses its connection meanwhile, and says so before."""
    images = save_pictures(tmp_path / "images", [(40, 32)] * 60, "ab", ["png"])
    damaged = sorted(images.rglob("*.png"))[40]
    content = damaged.read_bytes()
    damaged.write_bytes(content[:60] + bytes(len(content) - 80) + content[-20:])
    options = [f"data.train={images}", "data.test=null", "data.limit=null", "run.threads=1"]
    process = torchrun(*DEBUG, f"run.root={tmp_path}", *options, "evaluation.baselines=false")
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert_ends_with(said, f"and-dist: rank 1: {damaged}: its data is damaged or cut short")


@pytest.mark.whole_run
@pytest.mark.parametrize(
    ("number", "last"),
    [
        (signal.SIGUSR2, "and-dist: stopped by SIGUSR2, saved as r00-"),
        (signal.SIGKILL, "traceback : Signal 9 (SIGKILL) received by PID"),
    ],
)
def test_the_last_line_of_torchrun_is_why_ranks_stopped_or_which_was_killed(
    tmp_path: Path, number: signal.Signals, last: str
) -> None:
    process = torchrun(*DEBUG, *processes.ENDLESS, f"run.root={tmp_path}", "run.threads=1")
    processes.wait_until(lambda: processes.steps(tmp_path / "debug") > 5, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    os.kill(int(children.split()[0]), number)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert_ends_with(said, last)


@pytest.mark.parametrize(
    ("error", "printed", "told"),
    [
        (KeyError("boom"), "", "rank 1: KeyError: 'boom'"),
        (OSError("a full disk"), "and-dist: rank 1: a full disk\n", "rank 1: a full disk"),
        (AllRanksError("no index"), "", "no index"),
    ],
)
def test_a_rank_tells_torchrun_why_it_fails_though_it_may_not_print_it(
    error: Exception,
    printed: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fail(**_: object) -> None:
        raise error

    there = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    there |= {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_ERROR_FILE": f"{tmp_path}/error.json"}
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("and_dist.cli.app", fail)
    with pytest.raises(type(error) if isinstance(error, KeyError) else SystemExit):
        main()
    assert capsys.readouterr().err == printed
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == (
        f"and-dist: {told}"
    )


def assert_ends_with(said: str, sentence: str) -> None:
    """Assert that output ends with a line that begins so, and the border of torchrun's table."""
    *_, last, border = said.splitlines()
    assert last.strip().startswith(sentence), said
    assert set(border) == {"="}


def test_what_fails_in_training_says_where_and_is_no_refusal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(RuntimeError, match="three rows"), print_traceback_on_error():
        raise ValueError("three rows")
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert "test_cli.py" in said
    for whole in (AllRanksError("one rank tells it of all"), BadImageError("photos/a.jpg: no")):
        with pytest.raises(type(whole)), print_traceback_on_error():
            raise whole
    assert capsys.readouterr().err == ""


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    return subprocess.Popen(
        [*program, "--standalone", "-m", "and_dist", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finish(*arguments: str) -> str:
    return said_by(processes.start(*arguments))


def said_by(process: Started | subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return output


@pytest.mark.whole_run
def test_a_killed_run_continues_by_the_same_command(tmp_path: Path) -> None:
    """All ranks get SIGKILL after the second checkpoint; the rest is equal to the bit."""
    options = [f"run.root={tmp_path}", "curriculum.rounds=1", "data.limit=96", "data.limit_test=8"]
    for rank in processes.start_ranks(2, *DEBUG, *options, "name=whole"):
        said_by(rank)
    process = torchrun(*DEBUG, *options, "name=killed")
    latest = tmp_path / "killed" / "checkpoints" / "latest"
    deadline = time.monotonic() + PATIENCE
    while not latest.exists() or latest.read_text().strip() < "r00-e0002":
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    output = said_by(torchrun(*DEBUG, *options, "name=killed"))
    assert "continuing from" in output
    assert_equal_to_the_bit(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.whole_run
def test_a_run_leaves_its_table_its_summary_and_its_origin(tmp_path: Path) -> None:
    output = finish(*DEBUG, *QUICK, f"run.root={tmp_path}")
    folder = tmp_path / "debug"
    assert "raw pixels" in output
    assert f"run folder: {folder}" in output
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.keys() == {"raw_pixels", "random", "rounds", "seconds", "crc"}
    assert [r["anchors"] for r in summary["rounds"]] == [0, 48]
    assert all(r.keys() == {*ROUND_KEYS, *BANK_KEYS} for r in summary["rounds"])
    (environment,) = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert environment["world_size"] == 1
    assert "update_rate" in (folder / "config.yaml").read_text()


@pytest.mark.whole_run
def test_a_folder_of_images_trains_and_says_when_it_has_no_labels(
    tmp_path: Path, images: Path
) -> None:
    quick = ["optim.batch_size=4", "curriculum.epochs=1", "curriculum.rounds=1"]
    options = [*DEBUG, f"run.root={tmp_path}", *quick, f"data.train={images}"]
    finish(*options, f"data.test={images}", "name=labelled", "evaluation.knn=3")
    (rounds,) = [json.loads((tmp_path / "labelled" / "summary.json").read_text())["rounds"]]
    assert rounds[1]["consistency"] is not None
    output = finish(*options, f"data.train={images / 'a'}", "data.test=null", "name=bare")
    assert "no labels: consistency and kNN accuracy are not available" in output
    (rounds,) = [json.loads((tmp_path / "bare" / "summary.json").read_text())["rounds"]]
    unknown = dict.fromkeys(("consistency", "knn_bank", "probe_bank", "knn"))
    assert {**rounds[1], **unknown} == rounds[1]
    assert (rounds[1]["round"], rounds[1]["anchors"]) == (1, 3)
    assert 0 <= rounds[1]["neighbour_entropy"] <= 1


@pytest.mark.whole_run
def test_a_folder_of_another_run_is_refused(tmp_path: Path, cli: Cli) -> None:
    finish(*DEBUG, *QUICK, f"run.root={tmp_path}")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    status, _, said = cli(*DEBUG, *QUICK, f"run.root={tmp_path}", "optim.lr=0.01")
    assert status == 2
    assert "belongs to another config (optim.lr: 0.03 -> 0.01)" in said
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    status, _, said = cli(*DEBUG, *QUICK, f"run.root={tmp_path}", "name=other")
    assert (status, "is not empty and holds no run of ours" in said) == (2, True)
    (tmp_path / "other" / "thesis.tex").unlink()
    assert before.keys() == {path for path in tmp_path.rglob("*") if path.is_file()}
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())
