"""Call commands on a run of run.device=cuda, on its device and where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.conftest import Cli
from tests.pictures import save_pictures
from tests.pretend.device import pretend_gpu
from tests.pretend.runs import SHORT, train_on
from tests.pretend.tensors import PretendGpu

NUM_PICTURES = 5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on("cuda", tmp_path_factory.mktemp("runs"), *SHORT)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = [(40 + 3 * n, 50) for n in range(NUM_PICTURES)]
    return save_pictures(tmp_path_factory.mktemp("pictures"), sizes)


@pytest.fixture
def gpu() -> Iterator[PretendGpu]:
    with pretend_gpu() as gpu:
        yield gpu


def test_discover_finds_what_training_found(
    run: Path, gpu: PretendGpu, cli: Cli, tmp_path: Path
) -> None:
    """The bank that a round begins with is in the checkpoint of its beginning."""
    out = tmp_path / "discovery"
    options = ("--checkpoint", "r01-e0000", "--round", 1, "--out", out)
    assert cli("discover", run, *options)[0] == 0
    (shard,) = (run / "checkpoints" / "r01-e0000").glob("*.safetensors")
    expected_NK = load_file(shard)["neighbours"].numpy()
    np.testing.assert_array_equal(np.load(out / "neighbours.npy"), expected_NK)
    assert gpu.launches["mm"]


def test_evaluate_writes_its_figures(run: Path, gpu: PretendGpu, cli: Cli) -> None:
    overrides = ("evaluation.linear.epochs=1", "evaluation.linear.milestones=[1]")
    status, _, errors = cli("evaluate", run, "--knn", "--linear", *overrides)
    assert status == 0, errors
    (folder,) = (run / "evaluation").iterdir()
    for kind in ("knn", "linear"):
        assert json.loads((folder / f"{kind}.json").read_text())["of"]
    assert gpu.launches["convolution"]


@pytest.mark.nightly
def test_report_reads_a_run_of_a_gpu_without_one(run: Path, cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert cli("report", run, "--out", page)[0] == 0
    assert page.stat().st_size > 100_000


def test_export_reads_a_run_of_a_gpu_without_one(run: Path, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "export"
    assert cli("export", run, "--format", "safetensors", "--out", out)[0] == 0
    (weights,) = out.glob("*.safetensors")
    assert all(tensor.isfinite().all() for tensor in load_file(weights).values())


def test_neighbours_are_found_without_a_gpu(run: Path, cli: Cli, pictures: Path) -> None:
    picture = next(path for path in sorted(pictures.rglob("*")) if path.is_file())
    status, shown, errors = cli("neighbours", run, picture, "--count", 3, "--json")
    assert status == 0, errors
    assert json.loads(shown)


def test_embed_writes_features_of_unit_norm(
    run: Path, gpu: PretendGpu, cli: Cli, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "features.npy"
    status, _, errors = cli("embed", run, pictures, "--out", out)
    assert status == 0, errors
    features_ND = np.load(out)
    assert features_ND.shape == (NUM_PICTURES, 128)
    np.testing.assert_allclose(np.linalg.norm(features_ND, axis=1), 1, rtol=1e-5)
    assert gpu.launches["convolution"]
