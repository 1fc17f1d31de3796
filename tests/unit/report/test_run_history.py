"""What is made of a run's folder, from files written here."""

from __future__ import annotations

import json
import os
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from and_dist.config.load import load_config
from and_dist.report.build import read_histories
from and_dist.report.charts import MOST_POINTS, thin
from and_dist.report.neighbourhood_charts import entropy_histograms, pairs_by_round
from and_dist.report.run_history import read_history
from and_dist.report.time_line import time_line
from and_dist.report.training_charts import (
    accuracy_by_round,
    over_steps,
    training_curves,
)
from and_dist.runs.folder import write_config
from and_dist.runs.lock import hold_lock, is_held

BEGAN = 1_800_000_000.0
STEPS = 5
"""Of an epoch."""


def started(at: float, **more: object) -> dict[str, Any]:
    about = {"started": stamp(at), "world_size": 2, "device": "cpu", "host": "n1"}
    return {**about, **more}


def stamp(at: float) -> str:
    return datetime.fromtimestamp(BEGAN + at).astimezone().strftime("%Y-%m-%dT%H:%M:%S%z")


def look(number: int) -> dict[str, Any]:
    """The number-th step of a run of two rounds of two epochs."""
    epoch = (number - 1) // STEPS
    return {
        "event": "step",
        "time": BEGAN + number,
        "round": epoch // 2,
        "epoch": epoch % 2,
        "step": number,
        "epochs": number / STEPS,
        "loss": float(number),
        "lr": 0.03,
        "images_per_s": 100.0,
        "data_wait": 0.5,
        "memory_mb": 10.0,
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = load_config(
        ["configs/debug.yaml"],
        [f"run.root={tmp_path}", "curriculum.rounds=1", "curriculum.epochs=2"],
    )
    write_config(config, config.folder)
    return config.folder


def write_lines(run: Path, lines: list[dict[str, Any]], tail: str = "") -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + tail)


def write_starts(run: Path, *starts: dict[str, Any]) -> None:
    (run / "environment.json").write_text(json.dumps(starts))


def test_steps_lie_over_epochs_and_a_torn_line_is_none(run: Path) -> None:
    write_lines(run, [look(n) for n in range(1, 13)], '{"event": "step", "ti')
    write_starts(run, started(0))
    history = read_history(run)
    x, y = over_steps("loss")(history)
    np.testing.assert_allclose(x, np.arange(1, 13) / STEPS)
    np.testing.assert_allclose(y, np.arange(1, 13))
    assert history.state == "at round 1 of 1, epoch 1 of 2, ended without a word"
    with hold_lock(run, "trained", "wait for it"):
        assert read_history(run).state == "training, round 1 of 1, epoch 1 of 2"


def test_figures_an_older_program_did_not_write_are_left_out(run: Path) -> None:
    lines = [look(n) for n in range(1, 8)]
    for line in lines:
        del line["data_wait"], line["time"]
    write_lines(run, lines)
    drawn = {chart.key for chart in training_curves([read_history(run)])}
    assert "wait" not in drawn
    assert {"loss", "speed"} <= drawn


def test_throughput_is_that_of_one_rank_of_as_many_as_there_were(run: Path) -> None:
    write_lines(run, [look(1), look(2), look(5)])
    write_starts(run, started(0), started(3, world_size=4))
    (speed,) = [c for c in training_curves([read_history(run)]) if c.key == "speed"]
    assert list(speed.figure.data[0].y) == [50.0, 50.0, 25.0]


def test_a_start_that_was_killed_ends_with_its_last_word(run: Path) -> None:
    write_lines(run, [look(n) for n in range(1, 13)])
    first, second = started(0), started(8.0, continued_from="r00-e0001", steps_again=3)
    write_starts(run, first, {**second, "ended": stamp(60), "how": "SIGTERM, saved as r01-e0000"})
    history = read_history(run)
    assert [start.how for start in history.starts] == [
        "ended without a word",
        "SIGTERM, saved as r01-e0000",
    ]
    assert [start.ended - BEGAN for start in history.starts] == [7, 60]
    told = [(i.when - BEGAN, i.kind, i.text) for i in history.incidents]
    assert told == [
        (0, "started", "start 1: 2 rank(s) on cpu, n1"),
        (7, "ended", "start 1: ended without a word"),
        (8, "started", "start 2: 2 rank(s) on cpu, n1, from r00-e0001, 3 steps again"),
        (60, "ended", "start 2: SIGTERM, saved as r01-e0000"),
    ]
    assert history.state == "at round 1 of 1, epoch 1 of 2, SIGTERM, saved as r01-e0000"


def test_stalls_roll_backs_and_verdicts_are_incidents(run: Path) -> None:
    lost = {"round": 0, "epoch": 1, "step": 2, "rows": [4, 5]}
    write_lines(run, [look(1), {"event": "rolled_back", "time": BEGAN + 2, **lost}])
    (run / "stalls").mkdir()
    west = datetime.fromtimestamp(BEGAN).strftime("%Y-%m-%d 10:00:00 -0500")
    (run / "stalls" / "rank-3.txt").write_text(
        f"--- {west}: nothing has moved for 600 s\nThread 1:\n  File <b>\n"
    )
    job = run / "jobs" / "002" / "start-1"
    job.mkdir(parents=True)
    end = {"state": "goes on", "why": "a <node> was lost", "rank": None, "when": BEGAN + 3}
    (job / "end.json").write_text(json.dumps(end))
    history = read_history(run)
    found = {incident.kind: incident for incident in history.incidents}
    assert found["went back"].text == (
        "round 0 epoch 1 step 2 was not finite; went on without its 2 images"
    )
    assert found["stalled"].text == "rank-3: nothing has moved for 600 s"
    at_five_west = datetime.fromtimestamp(found["stalled"].when, timezone(timedelta(hours=-5)))
    assert (at_five_west.hour, at_five_west.minute) == (10, 0)
    assert found["judged"].text == "job 002, start-1: goes on, a <node> was lost"
    write_starts(run, started(0))
    chart = time_line(read_history(run))
    assert chart is not None
    hover = [trace.text for trace in chart.figure.data if trace.name == "judged"]
    assert hover == [("job 002, start-1: goes on, a &lt;node&gt; was lost",)]


def epoch(number: int, lr: float, **figures: object) -> dict[str, Any]:
    """The number-th epoch of a run of two rounds of two epochs."""
    place = {"event": "epoch", "round": number // 2, "epoch": number % 2}
    return {**place, "loss": 1.0, "lr": lr, **figures}


def test_a_learning_rate_holds_from_the_start_of_its_epoch(run: Path) -> None:
    write_lines(run, [epoch(0, 0.1), epoch(1, 0.1), epoch(2, 0.1), epoch(3, 0.01)])
    (chart,) = [c for c in training_curves([read_history(run)]) if c.key == "lr"]
    (trace,) = chart.figure.data
    assert trace.line.shape == "hv"
    assert (list(trace.x), list(trace.y)) == ([0, 3, 4], [0.1, 0.01, 0.01])
    assert chart.rows == (("debug", "0", "0.1"), ("debug", "3", "0.01"), ("debug", "4", "0.01"))


def test_signs_of_collapse_are_drawn_where_they_were_measured(run: Path) -> None:
    figures = {"probe_bank": 0.5, "spread": 0.9, "mean_norm": 0.1, "neighbour_entropy": None}
    write_lines(run, [epoch(0, 0.1), epoch(1, 0.1, **figures), ended(0, knn=0.25, **figures)])
    charts = {chart.key: chart for chart in training_curves([read_history(run)])}
    signs = {trace.name: (list(trace.x), list(trace.y)) for trace in charts["signs"].figure.data}
    assert signs == {"spread": ([2], [0.9]), "mean norm": ([2], [0.1])}
    assert charts["signs"].rows == (
        ("debug", "spread", "2", "0.900"),
        ("debug", "mean norm", "2", "0.100"),
    )
    assert "spread that falls towards 0" in charts["signs"].note
    probe = charts["bank-knn"].figure.data[0]
    assert (probe.name, list(probe.x), list(probe.y)) == ("linear probe", [2], [50])
    by_round = accuracy_by_round([read_history(run)])
    assert by_round is not None
    assert by_round.columns == ("run", "after round", "kNN %", "linear probe %")


def test_what_was_not_measured_leaves_nothing(run: Path) -> None:
    write_lines(run, [look(1), epoch(0, 0.1, spread=None, probe_bank=None), ended(0)])
    drawn = {chart.key for chart in training_curves([read_history(run)])}
    assert drawn == {"loss", "lr", "speed", "wait"}


def test_curves_of_several_runs_differ_by_colour_and_their_figures_by_dash(
    run: Path, tmp_path: Path
) -> None:
    write_lines(run, [epoch(0, 0.1, knn_bank=0.5, probe_bank=0.6)])
    other = Path(shutil.copytree(run, tmp_path / "other"))
    charts = {chart.key: chart for chart in training_curves(read_histories(run, [other]))}
    lines = [(t.name, t.line.color, t.line.dash) for t in charts["bank-knn"].figure.data]
    assert len({name for name, *_ in lines}) == 4
    assert [dash for *_, dash in lines] == ["solid", "dot"] * 2
    assert lines[0][1] == lines[1][1] != lines[2][1]


def test_a_round_that_the_config_lacks_is_left_out(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_lines(run, [epoch(40, 0.1), epoch(0, 0.1)])
    assert [record["round"] for record in read_history(run).of("epoch")] == [0]
    assert "metrics.jsonl are left out: they tell of rounds after round 1" in caplog.text


def ended(round_index: int, **figures: object) -> dict[str, Any]:
    known = {"anchors": 0, "consistency": None, "knn_bank": None, "knn": None, "seconds": 1.0}
    return {"event": "round", "round": round_index, **known, **figures}


def test_a_run_with_all_its_rounds_is_finished(run: Path) -> None:
    rounds = [ended(0), ended(1)]
    write_lines(run, [look(20), *rounds])
    history = read_history(run)
    assert history.state == "finished"
    assert accuracy_by_round([history]) is None


def test_runs_of_one_name_go_by_their_folders(run: Path, tmp_path: Path) -> None:
    same = Path(shutil.copytree(run, tmp_path / "elsewhere"))
    other = Path(shutil.copytree(run, tmp_path / "another"))
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("name: debug", "name: other"))
    names = [history.name for history in read_histories(run, [same, other])]
    assert names == [str(run), str(same), "other"]


def test_a_lock_from_elsewhere_tells_by_its_age_whether_someone_trains(run: Path) -> None:
    assert not is_held(run)
    (run / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    assert is_held(run)
    os.utime(run / "lock", (0, 0))
    assert not is_held(run)


def discovery(consistent: int | None) -> dict[str, Any]:
    return {
        "event": "discovery",
        "time": BEGAN,
        "round": 1,
        "anchors": 8,
        "consistent": consistent,
        "inconsistent": None if consistent is None else 8 - consistent,
        "entropy": {"low": 1.0, "high": 3.0, "mean": 2.0, "rows": [5, 5], "anchors": [5, 3]},
    }


@pytest.mark.parametrize(
    ("consistent", "bars"), [(6, {"consistent", "inconsistent"}), (None, {"anchors"})]
)
def test_pairs_are_counted_with_labels_and_without(
    run: Path, consistent: int | None, bars: set[str]
) -> None:
    write_lines(run, [discovery(consistent)])
    chart = pairs_by_round(read_history(run))
    assert chart is not None
    assert {trace.name for trace in chart.figure.data} == bars
    if consistent:
        assert chart.rows == (("1", "6", "2", "75.0"),)
        assert "round 1: 6 of one class, 2 not" in chart.alt


def test_histograms_stack_to_all_rows_and_are_cut_where_anchors_end(run: Path) -> None:
    write_lines(run, [discovery(None)])
    chart = entropy_histograms(read_history(run), {1: 2.6})
    assert chart is not None
    anchors, others = (list(trace.y) for trace in chart.figure.data)
    assert (anchors, others) == ([5, 3], [0, 2])
    assert list(chart.figure.data[0].x) == [1.5, 2.5]
    (view,) = chart.views
    assert [shape["x0"] for shape in view.shapes] == [2.6]
    assert chart.shown is view


def test_thinning_keeps_the_mean() -> None:
    x = np.arange(10 * MOST_POINTS + 7, dtype=float)
    few_x, few_y = thin(x, x**2)
    assert len(few_x) == len(few_y) == MOST_POINTS
    assert np.mean(few_x) == pytest.approx(x.mean(), rel=1e-3)
    assert few_x == sorted(few_x)
    assert thin(x[:3], x[:3]) == ([0, 1, 2], [0, 1, 2])


@pytest.mark.parametrize("content", ["no json\n", '{"no": "event"}\n'])
def test_lines_that_are_none_of_ours_are_left_out(
    run: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "metrics.jsonl").write_text(json.dumps(look(1)) + "\n" + content)
    assert read_history(run).last_step["step"] == 1
    assert f"1 line of {run}/metrics.jsonl is damaged and left out: line 2" in caplog.text


@pytest.mark.parametrize(
    "name", ["environment.json", "evaluation/r01-e0002/knn.json", "jobs/001/start-0/end.json"]
)
def test_a_damaged_file_is_left_out_and_said(
    run: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_text("[{")
    history = read_history(run)
    assert (history.starts, history.evaluations, history.incidents) == ((), (), ())
    assert f"{run / name} is damaged and left out" in caplog.text


def test_lost_lines_are_said(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_lines(run, [look(1)])
    write_starts(run, {**started(0), "ended": started(9)["started"], "metrics_bytes": 10**6})
    read_history(run)
    assert "metrics.jsonl has" in caplog.text
    assert "had 1,000,000 when the run ended" in caplog.text


def test_a_stall_without_a_time_is_left_out(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run / "stalls").mkdir()
    (run / "stalls/rank-0.txt").write_text("--- 2026-91-21 10:00:00 +0000: nothing moved\n")
    assert read_history(run).incidents == ()
    assert "rank-0.txt is left out" in caplog.text


def test_no_run_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no run folder"):
        read_history(tmp_path)
