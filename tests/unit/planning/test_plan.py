from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from and_dist.config import Config, load_config
from and_dist.discovery import check_discovery
from and_dist.planning.costs import COSTS
from and_dist.planning.footprint import footprint_of, refused_discovery, smallest_budget_mb
from and_dist.planning.hardware import GPUS, NAMED, Curve, Hardware, Links, read_measured
from and_dist.planning.job import Job, Size, count_rows
from and_dist.planning.pace import discovery_seconds, pace_of, traffic_of
from and_dist.planning.plan import (
    fewest_nodes,
    make_plan,
    measured_images_per_s,
    most_rows,
    plan_job,
)
from and_dist.planning.units import in_bytes, in_count, in_time, three_digits
from and_dist.run_folder import write_config
from tests.unit.planning.slide_rule import device, line

P = COSTS["tiny"].parameters


def config(*overrides: str) -> Config:
    return load_config(["configs/debug.yaml"], overrides)


def job(rows: int, ranks: int, *overrides: str, hardware: Hardware | None = None) -> Job:
    return Job(config(*overrides), rows, Size(1, ranks), hardware or device())


def test_the_shard_shrinks_with_the_world_and_the_table_does_not() -> None:
    for ranks, shard in ((1, 1000), (3, 334), (4, 250)):
        footprint = footprint_of(job(1000, ranks, "bank.dtype=float16"))
        assert footprint.bytes_of("shard of the bank") == shard * 128 * 2
        # a neighbour, an entropy and, in the last round, an anchor for every row
        assert footprint.bytes_of("neighbours, entropies, anchors") == 8 * 3 * 1000
    many = footprint_of(job(1000, 4, "curriculum.neighbours=10"))
    assert many.bytes_of("neighbours, entropies, anchors") == 8 * 12 * 1000


def test_weights_gradients_and_momentum_lie_there_once_each() -> None:
    for ranks in (1, 4):
        assert footprint_of(job(1000, ranks)).bytes_of("weights, gradients, momentum") == 12 * P
    without = footprint_of(job(1000, 1, "optim.momentum=0", "optim.nesterov=false"))
    assert without.bytes_of("weights, gradients, momentum") == 8 * P
    longer = footprint_of(job(1000, 1, "encoder.feature_dim=129"))
    assert longer.bytes_of("weights, gradients, momentum") == 12 * (P + 513)


def test_activations_follow_the_local_batch_and_the_precision() -> None:
    cost = COSTS["tiny"]
    wide, halved, narrow = (
        footprint_of(job(1000, ranks, *overrides)).bytes_of("activations")
        for ranks, overrides in ((1, ()), (2, ()), (1, ("encoder.precision=bfloat16",)))
    )
    assert wide == 48 * (cost.kept_float32 + 2 * 4 * cost.largest)
    assert halved == wide / 2
    assert narrow == 48 * (cost.kept_bfloat16 + 2 * 2 * cost.largest)


def test_every_rank_copies_all_it_holds_and_the_disk_takes_it_once() -> None:
    table, weights = 24 * 1000, 8 * P
    plan = make_plan(job(1000, 4))
    copy = weights + table + 250 * 512
    assert plan.footprint.bytes_of("checkpoint: copy of all") == copy
    assert plan.checkpoint_bytes == weights + table + 1000 * 512


def test_discovery_holds_two_tables_and_its_budget() -> None:
    footprint = footprint_of(job(10_000, 2, "discovery.memory_mb=100"))
    discovery = footprint.phase("discovery")
    named = {part.name: part.bytes for part in discovery.parts}
    assert named["discovery's budget"] == 100e6
    assert named["the next round's table"] == 24 * 10_000
    assert named["index of the search"] == 0
    narrow = footprint_of(job(10_000, 2, "discovery.search=IVF64,Flat"))
    assert narrow.bytes_of("index of the search") == 5_000 * 512
    alone = footprint_of(job(10_000, 2, "method=instance", "curriculum.rounds=0"))
    assert "discovery" not in {phase.name for phase in alone.phases}


def test_without_gpus_there_is_one_memory_and_with_them_two() -> None:
    here = footprint_of(job(1000, 2))
    assert here.peak("device") == here.peak("host")
    there = footprint_of(job(1000, 2, hardware=device(kind="gpu")))
    training = there.phase("training")
    on_gpu = {part.name for part in there.parts(training, "device")}
    on_host = {part.name for part in there.parts(training, "host")}
    assert "shard of the bank" in on_gpu
    assert "checkpoint: copy of all" in on_host
    assert on_gpu & on_host == {"framework"}


def test_traffic_is_what_a_rank_receives() -> None:
    # 48 queries, 16 a rank: a feature, a row, a neighbour and a byte; two partitions back
    traffic = traffic_of(job(1000, 3))
    assert traffic.gather == 2 * 16 * (512 + 8 + 8 + 1)
    assert traffic.exchange == 2 * 16 * 2 * (512 + 4)
    assert traffic.gradients == pytest.approx(2 * 2 / 3 * 4 * P)
    assert traffic.loss == pytest.approx(2 * 2 / 3 * 4)
    assert traffic_of(job(1000, 1)).total == 0


def test_a_step_is_the_sum_of_its_parts_and_the_loader_runs_beside() -> None:
    pace = pace_of(job(1000, 2, "data.image_size=32", "run.threads=1"))
    assert pace is not None
    assert pace.parts == pytest.approx(
        {
            "encoder": 24 * 1.0,
            "partition": 48 * 10.0 * 500 * 128 / 1e6,
            "gather": 24 * (512 + 17) * 1e-3,
            "exchange": 24 * 2 * 516 * 2e-3,
            "gradients": 4 * P * 1e-6,
            "loss": 4 * 1e-6,
            "optimiser": P * 1e-5,
            "rest": 48 * 0.5,
        }
    )
    assert pace.loader == pytest.approx(24 * 32**2 * 1e-4)
    assert pace.step == pytest.approx(sum(pace.parts.values()))  # two cores of four are free
    assert pace.epoch == pytest.approx(pace.step * 21)


def test_on_cores_that_are_full_the_loader_takes_its_time_from_the_rest() -> None:
    alone = pace_of(job(1000, 1, "run.threads=4"))
    assert alone is not None
    assert alone.step == pytest.approx(sum(alone.parts.values()) + alone.loader)
    for seconds, bound in ((1, "partition"), (100, "partition"), (1000, "loader")):
        pixels = 48 * config().data.image_size ** 2 / 4
        each = line(seconds / pixels)
        gpu = device(kind="gpu", loader={"pixels": each, "encoded": each})
        pace = pace_of(job(1000, 1, "run.threads=4", hardware=gpu))
        assert pace is not None
        assert pace.loader == pytest.approx(seconds)
        assert max(pace.parts.values()) < 100 < sum(pace.parts.values()) < 1000
        assert pace.bound_by == bound
        assert pace.step == pytest.approx(max(sum(pace.parts.values()), pace.loader))


def test_ranks_that_share_cores_wait_for_each_other() -> None:
    """The same work of a rank: four threads' cores for two ranks, or two for each."""
    threads = ("run.threads=2",)
    roomy, crowded = (
        pace_of(Job(config(*threads), 1000, Size(1, 2, cores), device())) for cores in (4, 2)
    )
    assert roomy is not None
    assert crowded is not None
    for part in ("encoder", "partition", "optimiser"):
        assert crowded.parts[part] == pytest.approx(2 * roomy.parts[part])
    waiting = device(turns=0.25)
    pace = pace_of(Job(config(*threads), 1000, Size(1, 2, 2), waiting))
    assert pace is not None
    assert pace.step == pytest.approx(crowded.step + 0.25)
    on_gpus = (
        pace_of(Job(config(*threads), 1000, Size(1, 2, cores), device(kind="gpu")))
        for cores in (4, 2)
    )
    a, b = (pace.parts["encoder"] for pace in on_gpus if pace is not None)
    assert a == b


def test_more_threads_than_were_measured_are_so_much_faster() -> None:
    one, four = (pace_of(job(1000, 1, f"run.threads={n}")) for n in (1, 4))
    assert one is not None
    assert four is not None
    assert one.parts["encoder"] == pytest.approx(4 * four.parts["encoder"])


def test_gradients_hide_behind_the_backward_pass_of_a_gpu() -> None:
    slow = Links(gather=line(0), exchange=line(0), reduce=line(1e-4))
    gpu = device(kind="gpu", links={2: slow})
    pace = pace_of(job(1000, 2, hardware=gpu))
    assert pace is not None
    assert pace.parts["gradients"] == pytest.approx(4 * P * 1e-4 - 24 * 2 / 3)


def test_discovery_scans_pairs_once_and_searches_for_anchors() -> None:
    scan, pairs = 1000**2 * 128 / 1e6, 1000**2 * 128
    assert discovery_seconds(job(1000, 1, "run.threads=1"), 0.0) == pytest.approx(scan)
    searched = discovery_seconds(job(1000, 1, "run.threads=1"), 0.5)
    assert searched == pytest.approx(scan + 0.5 * 2 * pairs / 2e6)
    fused = discovery_seconds(job(1000, 1, "run.threads=1", "discovery.search=fused"), 1.0)
    assert fused == pytest.approx(scan)
    huge, shared = (
        discovery_seconds(job(10**7, 1, "run.threads=1", f"discovery.search={search}"), 1.0)
        for search in ("Flat", "IVF4096,Flat")
    )
    assert shared < 0.6 * huge


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


@pytest.mark.parametrize("search", ["Flat", "fused"])
def test_a_budget_is_refused_where_discovery_refuses_it(search: str) -> None:
    for rows in (1_000_000, 3_124_999, 3_125_001, 40_000_000):
        this = job(rows, 2, "discovery.memory_mb=64", f"discovery.search={search}")
        budget = this.config.discovery.memory_bytes
        if refused_discovery(this):
            with pytest.raises(ValueError, match="is too little"):
                check_discovery(rows, 128, 2, 1, search, budget)
            check_discovery(rows, 128, 2, 1, search, 1_000_000 * smallest_budget_mb(this))
        else:
            check_discovery(rows, 128, 2, 1, search, budget)


def test_a_curve_is_a_line_between_what_was_measured() -> None:
    curve = Curve(points=((10, 1.0), (20, 3.0), (40, 5.0)))
    expected = {0: 0.0, 5: 0.5, 9: 0.9, 10: 1.0, 15: 2.0, 20: 3.0, 30: 4.0, 40: 5.0, 60: 7.0}
    assert {amount: curve.at(amount) for amount in expected} == pytest.approx(expected)
    assert Curve(points=((10, 1.0),)).at(30) == 3.0
    with_fixed_part = Curve(points=((10, 5.0), (20, 6.0)))
    assert with_fixed_part.at(0) == 4.0
    assert Curve(points=((10, 5.0), (20, 5.0))).at(1) == 5.0
    with pytest.raises(ValueError, match="ascending order"):
        Curve(points=((10, 1.0), (10, 2.0)))


def test_the_cpu_is_that_of_the_results() -> None:
    measured = read_measured(Path("benchmarks/results/hardware.json"))
    assert NAMED["cpu"] == measured


@pytest.fixture
def measured(tmp_path: Path) -> Config:
    """Of a run that made 100 images a second on two CPU ranks, and 7 before it was restarted."""
    run = config(f"run.root={tmp_path}")
    write_config(run, run.folder)
    steps = [
        {"event": "step", "time": at, "images_per_s": 7.0 if at < 1e9 else 100.0}
        for at in (*range(10), *range(10**9 + 5, 10**9 + 8))
    ]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
    start = {"world_size": 2, "device": "cpu", "started": "2001-09-09T01:46:40+0000"}
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


def test_other_methods_do_not_stream_past_the_bank() -> None:
    for method, partition in (("and", True), ("instance", True), ("nat", False)):
        this = job(1000, 2, f"method={method}", "run.threads=1")
        pace = pace_of(this)
        assert pace is not None
        assert (pace.parts["partition"] > 0) == partition
        assert (traffic_of(this).exchange > 0) == partition


def test_auto_products_are_those_that_the_hardware_takes() -> None:
    rounding = device(rounds_rows=True)
    for rows, hardware, per_million in ((200_000, rounding, 4.0), (200_000, device(), 10.0),
                                        (1000, rounding, 10.0)):  # fmt: skip
        pace = pace_of(job(rows, 1, "run.threads=1", hardware=hardware))
        assert pace is not None
        assert pace.parts["partition"] == pytest.approx(48 * per_million * rows * 128 / 1e6)


def test_what_is_asked_for_takes_memory() -> None:
    plain = footprint_of(job(1000, 2))
    for option, bytes_more in (
        ("data.cache_gb=3", 1.5e9), ("optim.compression=powersgd", 8 * P),
        ("optim.compression=float16", 2 * P),
    ):  # fmt: skip
        phase = "training"
        more = footprint_of(job(1000, 2, option))
        grown = more.total(more.phase(phase)) - plain.total(plain.phase(phase))
        assert grown == pytest.approx(bytes_more)
    features = {
        option: footprint_of(job(1000, 2, *option)).bytes_of("features of the shard")
        for option in ((), ("evaluation.baselines=false",))
    }
    assert features[()] == 500 * 3 * config().data.image_size ** 2 * 4
    assert features[("evaluation.baselines=false",)] == 500 * 512


def test_a_budget_that_training_refuses_is_planned_as_it_would_take_it() -> None:
    refused = job(40_000_000, 2, "discovery.memory_mb=64")
    assert refused_discovery(refused)
    budget = footprint_of(refused).bytes_of("discovery's budget")
    assert budget == 1e6 * smallest_budget_mb(refused)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (in_count(999_700_000), "1B"), (in_count(1_281_167), "1.28M"), (in_count(999), "999"),
        (in_count(2e12), "2,000B"), (in_time(0.9997), "1.00 s"), (in_time(4_444_444), "51.4 days"),
        (in_time(0.9996e-3), "1 ms"), (in_bytes(2e15), "2,000 TB"), (three_digits(1234.5), "1,234"),
    ],
)  # fmt: skip
def test_three_digits_and_no_exponents(text: str, said: str) -> None:
    assert text == said
