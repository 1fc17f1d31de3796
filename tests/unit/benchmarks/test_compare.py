"""Two runs of a benchmark: what is noise, what is a change, what is the machine's."""

from __future__ import annotations

import json
import math
import time
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import compare
from benchmarks.common.harness import Benchmark, what_is_measured
from benchmarks.common.rates import machine_rates

RATES = {"threads": 2, "matrix_fp32_gflops": 80.0, "copy_gb_s": 10.0, "decode_images_s": 1000.0}


def write(file: Path, seconds: dict[str, list[float]], **changed: Any) -> Path:
    """As a benchmark writes it, of made-up repeats."""
    benchmark = Benchmark("made up", arguments=[])
    benchmark.rates = benchmark.rates_before = RATES
    for name, repeats in seconds.items():
        benchmark.add(name, repeats, work=10, unit="rows")
    if {"ours", "theirs"} <= seconds.keys():
        benchmark.ratio("theirs", "theirs", "ours")
        benchmark.floor("ours", "ours", 0.5, "half a second")
    file.write_text(json.dumps(benchmark.as_json() | changed))
    return file


def repeats_around(mean: float, seed: int, count: int = 5, noise: float = 0.05) -> list[float]:
    return (mean * np.random.default_rng(seed).lognormal(0, noise, count)).tolist()


def verdicts(old: Path, new: Path) -> dict[str, str]:
    records = compare.read(old), compare.read(new)
    machine = compare.compare_machines(*records)
    changes = compare.compare_results(*records, machine, compare.LEAST)
    return {change.name: change.verdict for change in changes}


def test_orders_are_those_of_all_permutations() -> None:
    found = [0] * 7
    for order in set(permutations("ooonn")):
        found[sum(order[i:].count("o") for i in range(5) if order[i] == "n")] += 1
    assert [compare._orders(number, 3, 2) for number in range(7)] == found


@pytest.mark.parametrize(
    ("num_old", "num_new", "rank"), [(5, 5, 1), (4, 4, 0), (3, 9, 1), (8, 8, 8)]
)
def test_bound_is_that_of_the_tables(num_old: int, num_new: int, rank: int) -> None:
    """Of Mann and Whitney's U at 0.01, two-sided; the critical value of 8 and 8 is 7."""
    assert compare._rank_of_bound(num_old, num_new) == rank


def test_interval_misses_a_change_that_is_not_there_once_in_a_hundred() -> None:
    random, trials = np.random.default_rng(0), 2000
    missed = 0
    for _ in range(trials):
        repeats = random.lognormal(0, 0.1, (2, 6))
        _, interval = compare.compare_repeats(*repeats.tolist())
        assert interval is not None
        missed += not interval[0] <= 1 <= interval[1]
    assert missed / trials < 0.02


def test_slower_faster_and_the_same(tmp_path: Path) -> None:
    old = write(
        tmp_path / "old", {name: repeats_around(1, seed) for seed, name in enumerate("abc")}
    )
    means = {"a": 1.4, "b": 0.7, "c": 1.0}
    new = write(
        tmp_path / "new", {n: repeats_around(m, 10 + at) for at, (n, m) in enumerate(means.items())}
    )
    assert verdicts(old, new) == {"a": "slower", "b": "faster", "c": "the same"}
    assert compare.main([str(old), str(new)]) == 1
    assert compare.main([str(old), str(old)]) == 0


def test_small_change_beyond_noise_is_none(tmp_path: Path) -> None:
    old = write(tmp_path / "old", {"a": repeats_around(1, 0, noise=0.001)})
    new = write(tmp_path / "new", {"a": repeats_around(1.03, 1, noise=0.001)})
    assert verdicts(old, new) == {"a": "the same"}
    assert compare.main([str(old), str(new), "--least", "0.02"]) == 1


def test_large_change_within_noise_is_none(tmp_path: Path) -> None:
    old = write(tmp_path / "old", {"a": [1.0, 1.1, 1.2, 1.3, 3.0]})
    new = write(tmp_path / "new", {"a": [1.25, 1.6, 1.7, 1.8, 1.9]})
    assert verdicts(old, new) == {"a": "the same"}


def test_three_repeats_cannot_tell(tmp_path: Path) -> None:
    old = write(tmp_path / "old", {"a": [1.0, 1.1, 1.2]})
    new = write(tmp_path / "new", {"a": [2.0, 2.1, 2.2]})
    assert verdicts(old, new) == {"a": "too few repeats"}


def test_slower_machine_is_taken_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path / "old", {"a": repeats_around(1, 0), "b": repeats_around(1, 1)})
    half = {name: rate / 2 for name, rate in RATES.items()}
    slow = {"a": repeats_around(2, 2), "b": repeats_around(3, 3)}
    new = write(tmp_path / "new", slow, rates=half, machine={"cpu": "another"})
    assert verdicts(old, new) == {"a": "the same", "b": "slower"}
    compare.main([str(old), str(new)])
    printed = capsys.readouterr().out
    assert "100% slower in the new run" in printed
    assert "Different machines: cpu " in printed
    assert "slower: b\n" in printed


def test_rates_that_disagree_are_said_to(tmp_path: Path) -> None:
    old = write(tmp_path / "old", {"a": repeats_around(1, 0)})
    rates = RATES | {"copy_gb_s": 5.0, "decode_images_s": 2000.0}
    new = write(tmp_path / "new", {"a": repeats_around(1.5, 1)}, rates=rates)
    records = compare.read(old), compare.read(new)
    machine = compare.compare_machines(*records)
    assert machine.faster == 1
    assert math.isclose(machine.doubt, 1.0)
    assert verdicts(old, new) == {"a": "the same"}
    assert "disagree by 100%" in compare.describe_differences(*records, machine, 0.05)[0]


def test_ratios_know_which_way_is_better(tmp_path: Path) -> None:
    theirs = repeats_around(4, 0, noise=0.01)
    old = write(tmp_path / "old", {"ours": repeats_around(1, 1, noise=0.01), "theirs": theirs})
    new = write(tmp_path / "new", {"ours": repeats_around(0.8, 2, noise=0.01), "theirs": theirs})
    machine = compare.Machine(1.0, 0.0)
    records = compare.read(old), compare.read(new)
    found = compare.compare_ratios(*records, machine, compare.LEAST)
    assert {c.name: c.verdict for c in found} == {"theirs": "better", "floor_ours": "better"}
    assert math.isclose(found[0].factor, 1.25, rel_tol=0.05)
    back = compare.compare_ratios(*records[::-1], machine, compare.LEAST)
    assert {c.name: c.verdict for c in back} == {"theirs": "worse", "floor_ours": "worse"}
    unsure = compare.compare_ratios(*records, compare.Machine(1.0, 0.5), compare.LEAST)
    assert {c.name: c.verdict for c in unsure} == {"theirs": "better", "floor_ours": "the same"}


def test_files_of_a_real_benchmark(tmp_path: Path) -> None:
    """Waiting twice as long is slower, whatever else the machine does."""
    rates, files = machine_rates(1), []
    for number, wait in enumerate((0.05, 0.05, 0.25)):
        benchmark = Benchmark("waiting", arguments=[])
        benchmark.rates = benchmark.rates_before = rates
        cases = {"wait": lambda wait=wait: time.sleep(wait)}
        benchmark.measure(cases, 5, {"wait": 1}, "waits", measure_memory=True)
        files.append(tmp_path / f"{number}.json")
        benchmark.finish(files[-1])
    record = json.loads(files[0].read_text())
    assert len(record["results"][0]["seconds"]) == 5
    assert record["results"][0]["peak_mb"] < 10
    assert record["rates"] == rates
    assert min(rates.values()) > 0
    assert verdicts(files[0], files[2]) == {"wait": "slower"}
    assert verdicts(files[2], files[0]) == {"wait": "faster"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{", "cannot be read: it is not JSON"),
        ('{"machine": {}, "studies": {}}', "holds no repeats of a benchmark"),
        ('{"results": [{"name": "a", "median_s": 1}]}', "holds no repeats of a benchmark"),
    ],
)
def test_bad_file_is_a_sentence(
    tmp_path: Path, content: str | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = write(tmp_path / "good", {"a": [1.0] * 5}), tmp_path / "bad"
    if content is not None:
        bad.write_text(content)
    assert compare.main([str(good), str(bad)]) == 2
    printed = capsys.readouterr().err
    assert says in printed
    assert printed.count("\n") == 1


def test_nothing_in_common_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [write(tmp_path / name, {name: [1.0] * 5}) for name in "ab"]
    assert compare.main([str(file) for file in files]) == 2
    assert "have no result in common" in capsys.readouterr().err


def test_another_size_is_not_compared(tmp_path: Path) -> None:
    old = write(tmp_path / "old", {"a": repeats_around(1, 0)})
    new = write(tmp_path / "new", {"a": repeats_around(9, 1)})
    record = json.loads(new.read_text())
    record["results"][0]["work"] = 90
    new.write_text(json.dumps(record))
    assert verdicts(old, new) == {"a": "other size"}


@pytest.mark.parametrize("other", [{"arguments": ["--smoke"]}, {"device": "cuda"}])
def test_another_way_to_measure_is_refused(
    tmp_path: Path, other: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    old = write(tmp_path / "old", {"a": [1.0] * 5})
    new = write(tmp_path / "new", {"a": [2.0] * 5}, **other)
    assert compare.main([str(old), str(new)]) == 2
    printed = capsys.readouterr().err
    assert "was measured on cpu in full and" in printed
    assert ("cuda in full" if "device" in other else "with --smoke") in printed


def test_gpus_are_compared_by_their_own_rates(tmp_path: Path) -> None:
    rates = RATES | {"gpu_matrix_fp32_gflops": 1e4, "gpu_copy_gb_s": 1e3}
    other_host = rates | {name: 2 * rate for name, rate in RATES.items()}
    old = write(tmp_path / "old", {"a": repeats_around(1, 0)}, device="cuda", rates=rates)
    new = write(tmp_path / "new", {"a": repeats_around(1, 1)}, device="cuda", rates=other_host)
    assert verdicts(old, new) == {"a": "the same"}


def test_a_machine_that_changed_meanwhile_is_doubted(tmp_path: Path) -> None:
    old = write(tmp_path / "old", {"a": repeats_around(1, 0, noise=0.01)})
    new = write(tmp_path / "new", {"a": repeats_around(1.2, 1, noise=0.01)}, doubt=0.3)
    assert verdicts(old, new) == {"a": "the same"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--smoke", "--json", "here.json"], ["--smoke"]),
        (["--json=here.json", "--repeats", "9", "--device", "cuda"], ["--device", "cuda"]),
        ([], []),
    ],
)
def test_arguments_are_kept_where_they_change_what_is_measured(
    given: list[str], kept: list[str]
) -> None:
    assert what_is_measured(given) == kept
