"""`and-dist discover` as a person types it, on a run of configs/debug.yaml."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import Cli
from tests.end_to_end.processes import start_ranks
from tests.end_to_end.test_cli import said_by
from tests.ranks.runs import train_here

SUMMARY_KEYS = {
    "run",
    "checkpoint",
    "round",
    "curriculum",
    "temperature",
    "discovery",
    "rows",
    "seconds",
    "ranks",
    "anchors",
    "consistent",
    "inconsistent",
    "consistency_by_entropy",
    "kept",
    "recall",
    "entropy",
    "in_degree",
    "files",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_here(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def copied_run(run: Path, tmp_path: Path) -> Path:
    """To be spoilt."""
    return Path(shutil.copytree(run, tmp_path / "debug"))


def files_of(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def saved_table(run: Path, checkpoint: str) -> dict[str, Tensor]:
    (file,) = (run / "checkpoints" / checkpoint).glob("*.safetensors")
    return load_file(file)


def summary_of(out: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def assert_is_table(out: Path, table: dict[str, Tensor]) -> None:
    """To the bit what a checkpoint holds."""
    named = {"entropies": "entropy", "anchors": "anchors", "neighbours": "neighbours"}
    for file, name in named.items():
        found, expected = np.load(out / f"{file}.npy", allow_pickle=False), table[name].numpy()
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected, err_msg=file, strict=True)


@pytest.mark.parametrize(
    ("before", "round_index", "after"),
    [("r00-e0003", 1, "r01-e0003"), ("r01-e0003", 2, "r02-e0003")],
)
def test_a_saved_bank_gives_the_table_that_training_used(
    run: Path, tmp_path: Path, cli: Cli, before: str, round_index: int, after: str
) -> None:
    out = tmp_path / "deep" / "out"
    status, said, errors = cli("discover", run, "--checkpoint", before, "--out", out)
    assert (status, errors) == (0, "")
    found = f"discovery of round {round_index}: {100 * round_index} anchors, "
    assert said.startswith(f"loading {run}\n{found}")
    assert said.endswith(f"written to {out}\n")
    assert files_of(out) == {
        Path(name) for name in ("neighbours.npy", "entropies.npy", "anchors.npy", "summary.json")
    }
    assert_is_table(out, saved_table(run, after))


def test_the_summary_says_what_training_said_of_the_same_round(
    run: Path, tmp_path: Path, cli: Cli
) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    trained = [json.loads(line) for line in lines if '"event": "discovery"' in line]
    assert [figures["round"] for figures in trained] == [1, 2]
    for before, figures in zip(("r00-e0003", "r01-e0003"), trained, strict=True):
        cli("discover", run, "--checkpoint", before, "--out", tmp_path / before)
        summary = summary_of(tmp_path / before)
        assert summary.keys() == SUMMARY_KEYS
        for key in ("round", "anchors", "consistent", "inconsistent", "kept", "recall"):
            assert summary[key] == figures[key], key
        assert summary["entropy"] == figures["entropy"]
        assert summary["in_degree"] == figures["in_degree"]
        assert (summary["checkpoint"], summary["ranks"], summary["rows"]) == (before, 1, 200)


@pytest.mark.whole_run
def test_two_workers_find_the_same(run: Path, tmp_path: Path) -> None:
    """Entropies but for the rounding of float32, so anchors of near entropies may change places."""
    options = ["--checkpoint", "r00-e0003", "--out", str(tmp_path / "out")]
    first, second = start_ranks(2, "discover", run, *options)
    output = said_by(first)
    assert said_by(second) == ""
    assert output.count(f"written to {tmp_path / 'out'}") == 1
    table = saved_table(run, "r01-e0003")
    found = {file.stem: np.load(file) for file in (tmp_path / "out").glob("*.npy")}
    np.testing.assert_allclose(found["entropies"], table["entropy"], rtol=0, atol=1e-5)
    ranked = table["entropy"].numpy()[found["anchors"]]
    np.testing.assert_allclose(ranked, table["entropy"][table["anchors"]], rtol=0, atol=1e-5)
    assert np.array_equal(np.sort(found["anchors"]), np.sort(table["anchors"].numpy()))
    assert np.array_equal(found["neighbours"], table["neighbours"].numpy())
    assert summary_of(tmp_path / "out")["ranks"] == 2


def test_the_newest_checkpoint_and_a_folder_in_the_run_are_the_defaults(
    copied_run: Path, cli: Cli
) -> None:
    before = files_of(copied_run)
    status, said, _ = cli("discover", copied_run)
    out = copied_run / "discovery" / "r02-e0003-round2"
    assert (status, f"written to {out}" in said) == (0, True)
    summary = summary_of(out)
    assert (summary["checkpoint"], summary["round"], summary["kept"]) == ("r02-e0003", 2, 1.0)
    assert {path.parts[0] for path in files_of(copied_run) - before} == {"discovery"}


def test_what_is_found_can_be_chosen(run: Path, tmp_path: Path, cli: Cli) -> None:
    out, exact = tmp_path / "out", tmp_path / "exact"
    chosen = ["curriculum.rounds=4", "curriculum.neighbours=3", "objective.temperature=0.2"]
    options = ["--checkpoint", "r01-e0003", "--round", 3]
    fused = ["discovery.search=fused", "discovery.memory_mb=64", "run.threads=1"]
    assert cli("discover", run, *chosen, *fused, *options, "--out", out)[0] == 0
    assert cli("discover", run, *chosen, *options, "--out", exact)[0] == 0
    summary = summary_of(out)
    assert (summary["anchors"], summary["round"], summary["temperature"]) == (150, 3, 0.2)
    assert summary["curriculum"] == {
        "rounds": 4,
        "share": None,
        "epochs": 3,
        "start": "instance",
        "neighbours": 3,
    }
    assert summary["discovery"] == {"search": "fused", "recall": 0.98, "memory_mb": 64}
    neighbours = np.load(out / "neighbours.npy")
    assert neighbours.shape == (200, 3)
    assert ((neighbours >= 0).all(axis=1)).sum() == 150
    assert np.array_equal(neighbours, np.load(exact / "neighbours.npy"))


def test_an_approximate_search_says_its_recall(run: Path, tmp_path: Path, cli: Cli) -> None:
    chosen = ["discovery.search=IVF16,Flat", "discovery.recall=0.05", "curriculum.neighbours=5"]
    status, said, _ = cli("discover", run, *chosen, "--out", tmp_path)
    recall = summary_of(tmp_path)["recall"]
    assert status == 0
    assert 0.05 <= recall < 1
    assert f", recall {100 * recall:.1f} %, " in said


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ("/gone/train", "data.train=/gone/train: /gone/train is not"),
        ("shapes/test", "data.train=shapes/test holds other images than those trained on"),
    ],
)
def test_without_its_images_a_run_has_no_labels(
    copied_run: Path, cli: Cli, train: str, sentence: str
) -> None:
    config = copied_run / "config.yaml"
    text, was = config.read_text(), "  train: shapes/train\n"
    assert text.count(was) == 1
    config.write_text(text.replace(was, f"  train: {train}\n"))
    status, said, _ = cli("discover", copied_run, "--checkpoint", "r01-e0003")
    assert (status, f"no labels: {sentence}" in said) == (0, True)
    assert "consistent" not in said
    out = copied_run / "discovery" / "r01-e0003-round2"
    summary = summary_of(out)
    assert (summary["consistent"], summary["inconsistent"]) == (None, None)
    assert_is_table(out, saved_table(copied_run, "r02-e0003"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--checkpoint", "r09-e0001"], "has: r00-e0003, r01-e0003, r02-e0002, r02-e0003"),
        (["--checkpoint", "latest"], "there is no checkpoint"),
        (["--round", "3"], "round 3 is not one of 0..2"),
        (["--round=-1"], "round -1 is not one of 0..2"),
        (["curriculum.rounds=1", "--round", "2"], "round 2 is not one of 0..1"),
        (["bank.dtype=float16"], "was trained otherwise: bank.dtype: float32 -> float16"),
        (["encoder.feature_dim=64"], "was trained otherwise: encoder.feature_dim: 128 -> 64"),
        (["seed=1"], "was trained otherwise: seed: 0 -> 1"),
        (["data.limit=100"], "was trained otherwise: data.limit: 200 -> 100"),
        (["preset=paper"], "was trained otherwise: preset: code -> paper"),
        (["discovery.search=Flatt"], "discovery.search='Flatt' is no faiss index"),
        (["discovery.search=IVF201,Flat"], "into 201 cells, but the shortest shard has 200 rows"),
        (["discovery.memory_mb=10"], "discovery.memory_mb = 10 will not do"),
        (["discovery.serach=Flat"], "unknown key 'discovery.serach'; discovery takes: search"),
        (["curriculum.neighbours=101"], "curriculum.neighbours = 101 will not do"),
    ],
)
def test_what_cannot_be_gets_a_sentence_and_leaves_nothing(
    run: Path, tmp_path: Path, cli: Cli, arguments: list[str], sentence: str
) -> None:
    before = files_of(run)
    status, said, errors = cli("discover", run, *arguments, "--out", tmp_path / "out")
    assert (status, said) == (2, f"loading {run}\n")
    assert errors.startswith("and-dist: ")
    assert sentence in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()
    assert files_of(run) == before


def test_a_folder_that_is_no_run_is_refused(run: Path, tmp_path: Path, cli: Cli) -> None:
    for folder in (tmp_path / "none", tmp_path, run / "config.yaml"):
        status, _, errors = cli("discover", folder)
        assert (status, f"{folder} is no run folder: it has no" in errors) == (2, True)
    shutil.copy(run / "config.yaml", tmp_path)
    status, _, errors = cli("discover", tmp_path)
    assert (status, f"{tmp_path} has no checkpoint yet" in errors) == (2, True)
    assert files_of(tmp_path) == {Path("config.yaml")}


def test_more_ranks_than_an_index_can_be_cut_for_are_refused(
    run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "60")
    monkeypatch.setenv("RANK", "0")
    status, _, errors = cli("discover", run, "discovery.search=IVF8,Flat")
    assert (status, "but the shortest shard has 4 rows" in errors) == (2, True)


def test_an_out_that_cannot_be_a_folder_gets_a_sentence(
    run: Path, tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "file").write_text("here already")
    status, _, errors = cli("discover", run, "--out", tmp_path / "file")
    assert status in (1, 2)
    assert errors.startswith("and-dist: ")
    assert "Traceback" not in errors
    assert (tmp_path / "file").read_text() == "here already"


@pytest.mark.parametrize("spoil", ["state.json", "*.safetensors"])
def test_a_checkpoint_that_is_not_whole_gets_a_sentence(
    copied_run: Path, cli: Cli, spoil: str
) -> None:
    (file,) = (copied_run / "checkpoints" / "r01-e0003").glob(spoil)
    file.unlink()
    status, _, errors = cli("discover", copied_run, "--checkpoint", "r01-e0003")
    assert status in (1, 2)
    assert errors.startswith("and-dist: ")
    assert "r01-e0003" in errors
    assert not (copied_run / "discovery").exists()
