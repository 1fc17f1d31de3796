"""What a step sends and how long everything takes, by part."""

from __future__ import annotations

from pathlib import Path

import pytest

from and_dist.planning.catalogue import NAMED, read_measured
from and_dist.planning.costs import COSTS
from and_dist.planning.hardware import Curve, Links
from and_dist.planning.timing import discovery_seconds, pace_of, traffic_of
from and_dist.planning.workload import Job, Size
from tests.unit.planning.slide_rule import config, device, job, line

P = COSTS["tiny"].parameters


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


def test_parts_of_a_batch_take_turns() -> None:
    whole, parts = (
        pace_of(job(1000, 2, "data.image_size=32", "run.threads=1", f"optim.accumulate={count}"))
        for count in (1, 4)
    )
    assert whole is not None
    assert parts is not None
    # The rates of the slide rule are lines through 0, so parts take as long as the whole ...
    for name in ("encoder", "partition", "gather", "exchange", "gradients", "optimiser"):
        assert parts.parts[name] == pytest.approx(whole.parts[name])
    # ... but for the loss, which each part sums over the ranks.
    assert parts.parts["loss"] == pytest.approx(4 * whole.parts["loss"])


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
    waiting = device(waits=0.5, turns=0.25)
    for ranks, cores, waited in ((1, 2, 0.0), (2, 4, 0.5), (2, 2, 0.75)):
        jobs = (
            Job(config(*threads), 1000, Size(1, ranks, cores), of) for of in (device(), waiting)
        )
        without, beside = (pace for pace in map(pace_of, jobs) if pace is not None)
        assert without.waits == 0
        assert beside.waits == waited
        assert beside.step == pytest.approx(without.step + waited)
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


def test_other_methods_do_not_stream_past_the_bank() -> None:
    for method, partition in (("and", True), ("instance", True), ("nat", False)):
        this = job(1000, 2, f"method={method}", "run.threads=1")
        pace = pace_of(this)
        assert pace is not None
        assert (pace.parts["partition"] > 0) == partition
        assert (traffic_of(this).exchange > 0) == partition


def test_auto_products_are_those_that_the_hardware_takes() -> None:
    rounding = device(rounds_rows=True)
    for rows, hardware, per_million in (
        (200_000, rounding, 4.0),
        (200_000, device(), 10.0),
        (1000, rounding, 10.0),
    ):
        pace = pace_of(job(rows, 1, "run.threads=1", hardware=hardware))
        assert pace is not None
        assert pace.parts["partition"] == pytest.approx(48 * per_million * rows * 128 / 1e6)
