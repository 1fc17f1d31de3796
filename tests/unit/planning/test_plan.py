"""A whole plan: what fits, what was measured, what is said."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from and_dist.config.load import load_config
from and_dist.config.schema import Config
from and_dist.data.preparation.prepare import Job as Preparation
from and_dist.data.preparation.prepare import prepare
from and_dist.data.transcode import PackOptions
from and_dist.planning import catalogue
from and_dist.planning.gpus import GPUS
from and_dist.planning.plan import (
    fewest_nodes,
    make_plan,
    measured_images_per_s,
    most_rows,
    plan_job,
)
from and_dist.planning.printout import _run_lines
from and_dist.planning.timing import discovery_seconds, encoder_seconds, partition_seconds
from and_dist.planning.units import in_count, in_time
from and_dist.planning.workload import Job, Size, count_rows
from and_dist.runs.folder import write_config
from and_dist.utils.formatting import in_bytes, three_digits
from and_dist.utils.progress import NoReport
from tests.pictures import save_pictures
from tests.unit.planning.slide_rule import config, device, job


def test_a_run_is_its_epochs_its_discoveries_and_features_for_knn() -> None:
    this = job(1000, 1, "run.threads=1", "data.test=null")
    plan = make_plan(this)
    assert plan.pace is not None
    discoveries = discovery_seconds(this, 0.5) + discovery_seconds(this, 1.0)
    assert plan.pace.run == pytest.approx(9 * plan.pace.epoch + discoveries)
    assert plan.device_hours == pytest.approx(plan.pace.run / 3600)
    tested = make_plan(job(1000, 1, "run.threads=1")).pace
    assert tested is not None
    assert tested.run == pytest.approx(plan.pace.run + 3 * 21 * 48 / 3)


@pytest.mark.parametrize("name", sorted(GPUS))
def test_more_of_anything_never_takes_less(name: str) -> None:
    def look(rows: int, nodes: int, *overrides: str) -> tuple[float, float]:
        changes = "encoder.name=alexnet", "data.image_size=224", "evaluation.baselines=false"
        changes = *changes, *overrides
        plan = make_plan(Job(config(*changes), rows, Size(nodes, 8), GPUS[name]))
        assert plan.pace is not None
        return plan.footprint.peak(), plan.pace.epoch

    held, epochs = zip(*(look(10**power, 1) for power in range(4, 10)), strict=True)
    assert list(held) == sorted(held)
    assert list(epochs) == sorted(epochs)
    held = [look(10**8, nodes)[0] for nodes in (16, 4, 1)]
    assert held == sorted(held)
    batches = [look(10**6, 1, f"optim.batch_size={64 * 4**power}") for power in range(4)]
    assert [held for held, _ in batches] == sorted(held for held, _ in batches)
    for (_, before), (_, after) in pairwise(batches):
        assert after < 1.01 * before  # the last step of an epoch may be less full
    assert look(10**8, 1, "bank.dtype=bfloat16") < look(10**8, 1)


def test_as_many_rows_fit_as_are_said_to_and_not_one_more() -> None:
    for hardware, ranks in ((device(), 2), (GPUS["a100"], 8)):
        this = job(1000, ranks, hardware=hardware)
        most = most_rows(make_plan(this))
        assert most
        assert make_plan(this.of(num_rows=most)).fits
        assert not make_plan(this.of(num_rows=most + 1)).fits
    assert most_rows(make_plan(job(1000, 1), memory_gb=0.01)) == 0
    assert most_rows(make_plan(replace(job(1000, 1), hardware=None))) is None


def test_the_fewest_nodes_fit_and_one_less_does_not() -> None:
    this = Job(config(), 10**9, Size(1, 8), GPUS["h100"])
    nodes = fewest_nodes(make_plan(this))
    assert nodes is not None
    assert make_plan(this.of(nodes=nodes)).fits
    assert not make_plan(this.of(nodes=nodes - 1)).fits
    # twice 24 bytes a row and 24 to check them: more than 80 GB on any number of ranks
    assert fewest_nodes(make_plan(this.of(num_rows=2 * 10**9))) is None


def test_what_fits_here_fits_on_some_number_of_nodes() -> None:
    """On a million ranks it would not: each of them brings two queries for all."""
    plan = make_plan(Job(config(), 1_281_167, Size(1, 8), GPUS["v100-16gb"]))
    assert plan.fits
    assert not make_plan(plan.job.of(nodes=2**17), plan.memory_gb).fits
    assert fewest_nodes(plan) == 1


@pytest.fixture
def measured(tmp_path: Path) -> Config:
    """Of a run that made 100 images a second on two CPU ranks, and 7 before it was restarted."""
    run = config(f"run.root={tmp_path}")
    write_config(run, run.folder)
    place = {"event": "step", "round": 0, "epoch": 0, "step": 1}
    steps = [
        {**place, "time": at, "images_per_s": 7.0 if at < 1e9 else 100.0}
        for at in (*range(10), *range(10**9 + 5, 10**9 + 8))
    ]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
    about = {"world_size": 2, "device": "cpu", "host": "n1"}
    start = {**about, "started": "2001-09-09T01:46:40+0000"}
    (run.folder / "environment.json").write_text(json.dumps([start]))
    return run


def test_what_the_run_has_measured_wins(measured: Config) -> None:
    plan = plan_job(measured, Size(1, 2), None)
    assert plan is not None
    assert plan.measured_images_per_s == 100.0
    assert plan.epoch_seconds == pytest.approx(200 / 100.0)
    assert plan.run_seconds == pytest.approx(9 * 200 / 100.0)


def test_what_another_job_has_measured_does_not_count(measured: Config) -> None:
    this = Job(measured, 200, Size(1, 2), None)
    assert measured_images_per_s(this) == 100.0
    other = load_config([], [f"run.root={measured.run.root}", f"name={measured.name}"])
    for wrong in (
        this.of(ranks_of_a_node=4),
        this.of(num_rows=201),
        replace(this, hardware=device(kind="gpu")),
        replace(this, config=other),
    ):
        assert measured_images_per_s(wrong) is None


def test_lost_metrics_are_said(measured: Config, caplog: pytest.LogCaptureFixture) -> None:
    (start,) = json.loads((measured.folder / "environment.json").read_text())
    ended = {"ended": "2001-09-09T01:47:40+0000", "metrics_bytes": 99}
    (measured.folder / "environment.json").write_text(json.dumps([start | ended]))
    (measured.folder / "metrics.jsonl").unlink()
    assert measured_images_per_s(Job(measured, 200, Size(1, 2), None)) is None
    assert "metrics.jsonl has 0 bytes, and had 99 when the run ended" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\x00", "a: b: c", "1: 2", "event: [step]"])
def test_a_damaged_config_of_a_run_tells_nothing(
    measured: Config, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    (measured.folder / "config.yaml").write_text(text)
    assert measured_images_per_s(Job(measured, 200, Size(1, 2), None)) is None
    assert f"{measured.folder}/config.yaml" in caplog.text


def test_a_lost_config_of_a_run_is_said(measured: Config, caplog: pytest.LogCaptureFixture) -> None:
    (measured.folder / "config.yaml").unlink()
    assert measured_images_per_s(Job(measured, 200, Size(1, 2), None)) is None
    assert f"{measured.folder}/config.yaml" in caplog.text


def test_without_hardware_memory_is_known_and_time_is_not() -> None:
    plan = plan_job(config(), Size(1, 2), None)
    assert plan is not None
    assert plan.footprint.bytes_of("shard of the bank") == 100 * 512
    assert plan.epoch_seconds is None


def test_rows_are_counted_without_reading_an_image(tmp_path: Path) -> None:
    assert count_rows(config("data.limit=null").data) == 2000
    assert count_rows(config(f"data.train={tmp_path}/nowhere").data) is None
    (tmp_path / "a").mkdir()
    for number in range(3):
        pixels = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
        pixels.save(tmp_path / "a" / f"{number}.png")
    (tmp_path / "a" / "empty.png").write_bytes(b"")
    assert count_rows(config(f"data.train={tmp_path}").data) == 4


def test_a_prepared_set_with_a_lost_or_foreign_manifest_is_refused(tmp_path: Path) -> None:
    save_pictures(tmp_path / "photos/train", [(8, 8)] * 6, "ab", ["png"])
    save_pictures(tmp_path / "photos/val", [(8, 8)] * 4, "ab", ["png"])
    photos, out = tmp_path / "photos", tmp_path / "out"
    prepare(Preparation(photos, out, PackOptions(), "stop", 1, NoReport()))
    train = out / "train"
    data = config(f"data.train={train}").data
    assert count_rows(data) == 6
    shutil.copy(out / "test/manifest.json", train)
    with pytest.raises(ValueError, match=rf"{train}: .* bytes, and .* by manifest\.json"):
        count_rows(data)
    (train / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"was prepared, and has lost its manifest\.json"):
        count_rows(data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (in_count(999_700_000), "1B"),
        (in_count(1_281_167), "1.28M"),
        (in_count(999), "999"),
        (in_count(2e12), "2,000B"),
        (in_time(0.9997), "1.00 s"),
        (in_time(4_444_444), "51.4 days"),
        (in_time(0.9996e-3), "1 ms"),
        (in_bytes(2e15), "2,000 TB"),
        (three_digits(1234.5), "1,234"),
    ],
)
def test_three_digits_and_no_exponents(text: str, said: str) -> None:
    assert text == said


def test_a_plan_says_of_each_figure_where_it_comes_from() -> None:
    plan = make_plan(Job(config(), 1_281_167, Size(1, 8), GPUS["h100"]))
    assert plan.origins["measured"].startswith("encoders (AlexNet), partition")
    said = "\n".join(_run_lines(plan))
    assert f"  measured: {plan.origins['measured']}" in said
    assert "  published: memory" in said
    assert "measured" not in make_plan(Job(config(), 1000, Size(1, 8), GPUS["a100"])).origins


def test_an_h100_takes_the_seconds_that_were_measured() -> None:
    """AlexNet's encoder took 10.1 ms, and the partition of 256 queries 0.355 ms."""
    changes = "encoder.name=alexnet", "data.image_size=224", "encoder.precision=bfloat16"
    changes = *changes, "optim.batch_size=256"
    this = Job(
        config(*changes, "bank.products=float16", "encoder.feature_dim=128"),
        1_281_167,
        Size(1, 1),
        GPUS["h100"],
    )
    rates = GPUS["h100"].rates[1]
    assert encoder_seconds(this, rates) == pytest.approx(10.13e-3)
    assert partition_seconds(this, rates) == pytest.approx(0.355e-3)


def test_hardware_that_was_kept_takes_the_place_of_estimates(tmp_path: Path) -> None:
    kept = GPUS["h100"].model_copy(update={"source": "measured on one H100"})
    content = {"hardware": kept.model_dump(mode="json")}
    (tmp_path / "h100.json").write_text(json.dumps(content))
    (tmp_path / "cpu.json").write_text((catalogue.FOLDER / "cpu.json").read_text())
    assert catalogue.known_in(tmp_path)["h100"].source == "measured on one H100"
    assert next(iter(catalogue.known_in(tmp_path))) == "cpu"
    assert catalogue.NAMED["h100"].source.startswith("one H100 of ours")
