"""The first figures of a page, from metrics written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from and_dist.config.load import load_config
from and_dist.report.run_history import History, read_history
from and_dist.report.summary_cards import Card, summary_cards
from and_dist.report.summary_tables import summary_tables
from and_dist.runs.folder import write_config

BASELINES = {"event": "baselines", "raw_pixels": 0.25, "random": 0.3}
START = {"started": "2027-01-15T08:00:00+0000", "world_size": 4, "device": "cpu", "host": "n1"}


def ended(round_index: int, knn: float | None, **more: Any) -> dict[str, Any]:
    known = {"anchors": 10 * round_index, "consistency": None, "knn_bank": knn, "knn": knn}
    return {"event": "round", "round": round_index, "seconds": 3700.0, **known, **more}


def discovered(round_index: int, consistent: int | None, mean: float) -> dict[str, Any]:
    return {
        "event": "discovery",
        "round": round_index,
        "anchors": 1000 * round_index,
        "consistent": consistent,
        "inconsistent": None if consistent is None else 100 - consistent,
        "entropy": {"low": 1.0, "high": 3.0, "mean": mean, "rows": [1500, 500], "anchors": [0, 0]},
    }


def logged(number: int, images_per_s: float, memory_mb: float) -> dict[str, Any]:
    place = {"round": 0, "epoch": 0, "step": number, "epochs": number / 10, "time": 1.8e9 + number}
    figures = {"loss": 5.0 - number, "lr": 0.1, "data_wait": 0.05 * number}
    speed = {"images_per_s": images_per_s, "memory_mb": memory_mb}
    return {"event": "step", **place, **figures, **speed}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    overrides = [f"run.root={tmp_path}", "curriculum.rounds=2", "curriculum.epochs=2"]
    config = load_config(["configs/debug.yaml"], [*overrides, "optim.milestones=[1]"])
    write_config(config, config.folder)
    return config.folder


def history_of(run: Path, *lines: dict[str, Any]) -> History:
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_history(run)


def test_the_last_knn_tells_its_gain_over_both_baselines(run: Path) -> None:
    lines = BASELINES, ended(0, 0.4), ended(1, 0.712), {**ended(2, None), "knn_bank": None}
    learned = summary_cards(history_of(run, *lines))["Learned"]
    gains = "+41.2 over the untrained network", "+46.2 over raw pixels"
    assert learned[0] == Card("kNN", "71.2\u00a0%", (*gains, "after round 1"))
    below = summary_cards(history_of(run, BASELINES, ended(0, 0.25)))["Learned"][0]
    assert below.notes == (
        "5.0 below the untrained network",
        "equal to raw pixels",
        "after round 0",
    )


def test_the_bank_speaks_before_the_first_round_has_ended(run: Path) -> None:
    epoch = {"event": "epoch", "round": 0, "epoch": 0, "loss": 1.0, "lr": 0.1, "knn_bank": 0.35}
    (card,) = summary_cards(history_of(run, BASELINES, epoch))["Learned"]
    assert (card.name, card.value) == ("bank-kNN", "35.0\u00a0%")
    assert card.notes[0] == "+5.0 over the untrained network"
    assert card.notes[-1] == "round 0, after epoch 1 of 2"


def test_consistency_stands_beside_that_of_the_first_round(run: Path) -> None:
    history = history_of(run, discovered(1, 40, 2.0), discovered(2, 65, 1.5))
    assert summary_cards(history)["Learned"] == [
        Card(
            "consistency",
            "65.0\u00a0%",
            ("neighbours of their anchor's class", "40.0\u00a0% in round 1"),
        ),
        Card("anchors", "2,000", ("of 2,000 images",)),
    ]


def test_without_labels_the_entropy_stands_for_the_consistency(run: Path) -> None:
    history = history_of(run, discovered(1, None, 2.0), ended(1, None))
    groups = summary_cards(history)
    spread = "mean of all images, which lie between 1.000 and 3.000"
    assert groups["Learned"] == [
        Card("anchors", "1,000", ("of 2,000 images",)),
        Card("entropy of neighbours", "2.000", (spread,)),
    ]
    (table,) = summary_tables([history])
    assert table.columns == ("after", "anchors", "time")
    assert table.caption == "By round"


def test_costs_are_those_of_the_run_and_not_of_its_last_step(run: Path) -> None:
    (run / "environment.json").write_text(json.dumps([START]))
    steps = logged(1, 1200.0, 900.0), logged(2, 1400.0, 2345.0), logged(3, 99000.0, 100.0)
    costs = summary_cards(history_of(run, *steps, ended(0, None)))["Cost"]
    assert costs == [
        Card("training time", "1:01:40", ("to the end of round 0 of 2",)),
        Card("images/s", "1,400", ("median of the logged steps", "350 a rank")),
        Card("waiting for data", "10.0\u00a0%", ("of rank 0's time, median",)),
        Card("memory", "2.3 GB", ("the most that rank 0 held",)),
    ]


def test_a_run_without_figures_has_no_cards(run: Path) -> None:
    assert summary_cards(history_of(run)) == {}


@pytest.mark.parametrize("value", ["0.5", [0.5], 1.5, -0.1, float("nan"), True])
def test_a_figure_that_is_no_share_is_left_out(run: Path, value: object) -> None:
    assert history_of(run, ended(0, 0.5, probe_bank=value)).of("round") == []


def test_a_run_that_began_with_weights_is_not_compared_with_an_untrained_network(run: Path) -> None:
    overrides = [f"run.root={run.parent}", "name=continued", "encoder.weights=runs/demo"]
    config = load_config(["configs/debug.yaml"], overrides)
    write_config(config, config.folder)
    history = history_of(config.folder, BASELINES, ended(0, 0.4))
    assert summary_cards(history)["Learned"][0].notes[0] == "+10.0 over the loaded weights"
    names = [row[0] for row in summary_tables([history])[0].rows]
    assert names[:2] == ["raw pixels", "loaded weights"]
