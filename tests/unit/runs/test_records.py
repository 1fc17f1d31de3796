"""Records that earlier revisions wrote pass; what has another kind of value is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from and_dist.runs.folder import check_inside, read_starts
from and_dist.runs.metrics_file import stream
from and_dist.runs.records import (
    EVENTS,
    Evaluation,
    Start,
    Summary,
    Verdict,
    check,
    check_event,
    parse,
    read_evaluation,
    read_record,
    say_damage,
    write_record,
)
from and_dist.utils.owned_files import NotOursError, never

FIXTURES = Path(__file__).parents[2] / "fixtures"
STEP = {"event": "step", "time": 1.0, "round": 0, "epoch": 1, "step": 7, "loss": 2.5}
ROUND = {
    "event": "round",
    "time": 1.0,
    "round": 1,
    "anchors": 10,
    "consistency": None,
    "knn_bank": 0.5,
    "knn": None,
    "seconds": 3,
}
ENTROPY = {"low": 0.0, "high": 1.0, "mean": 0.5, "rows": [1, 2], "anchors": [1, 0]}
DISCOVERY = {
    "event": "discovery",
    "round": 1,
    "anchors": 3,
    "consistent": 2,
    "inconsistent": 1,
    "entropy": ENTROPY,
}


@pytest.mark.parametrize("name", ["and", "job", "deepcluster"])
def test_all_lines_of_earlier_revisions_pass_as_they_are(name: str) -> None:
    file = FIXTURES / name / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["event"] for line in lines} & EVENTS.keys()
    for line, found in zip(lines, stream(file), strict=True):
        assert {key: found[key] for key in line} == line
    assert len(read_starts(FIXTURES / name)) > 0


def test_what_an_earlier_revision_did_not_write_has_a_value() -> None:
    found = check_event(STEP)
    assert math.isnan(found["data_wait"])
    assert found["loss"] == 2.5


@pytest.mark.parametrize(
    ("record", "key", "value"),
    [
        (STEP, "step", -1),
        (STEP, "step", 1.5),
        (STEP, "step", True),
        (STEP, "step", 10**13),
        (STEP, "loss", "2"),
        (STEP, "time", -1.0),
        (STEP, "time", float("nan")),
        (STEP, "time", 1e12),
        (STEP, "event", ["step"]),
        (STEP, "event", "x" * 201),
        (ROUND, "knn", 1.01),
        (ROUND, "knn", -0.01),
        (ROUND, "anchors", None),
        (ROUND, "seconds", float("inf")),
        (DISCOVERY, "consistent", 1.5),
        (DISCOVERY, "entropy", {**ENTROPY, "rows": []}),
        (DISCOVERY, "entropy", {**ENTROPY, "rows": [1]}),
        (DISCOVERY, "entropy", {**ENTROPY, "high": -1.0}),
        (DISCOVERY, "entropy", {**ENTROPY, "mean": 1e31}),
        (DISCOVERY, "entropy", {**ENTROPY, "rows": [1] * 10_001, "anchors": [1] * 10_001}),
        (DISCOVERY, "consistency_by_entropy", [0.5] * 1001),
        (DISCOVERY, "consistency_by_entropy", [2]),
    ],
)
def test_another_kind_of_value_is_refused(record: dict[str, Any], key: str, value: Any) -> None:
    assert check_event(record)[key] if record.get(key) else True
    with pytest.raises(ValueError, match=rf"^{key}"):
        check_event({**record, key: value})


@pytest.mark.parametrize("key", ["round", "anchors", "knn", "knn_bank", "consistency"])
def test_a_key_that_is_read_may_not_be_missing(key: str) -> None:
    without = {k: v for k, v in ROUND.items() if k != key}
    with pytest.raises(ValueError, match=f"^{key}: field required"):
        check_event(without)


@pytest.mark.parametrize("value", [None, 3, "x", [], [STEP]])
def test_a_line_is_an_object(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^it: "):
        check_event(value)


def test_texts_cannot_control_a_terminal() -> None:
    verdict = {"state": "failed\x07", "why": "\x1b[2J", "when": 1.0}
    assert check(Verdict, verdict)["why"] == "\ufffd[2J"
    start = {
        "started": "2026-11-28T10:00:00+0000",
        "world_size": 1,
        "device": "cpu",
        "host": "\x1bn1",
    }
    assert check(Start, start)["host"] == "\ufffdn1"
    with pytest.raises(ValueError, match=r"^[^\x1b]*$"):
        check(Evaluation, {"checkpoint": "r", "protocol": {}, "of": {"\x1b": 3}})


@pytest.mark.parametrize(
    "text", ["[" * 21 + "]" * 21, "[" * 100_000, '{"a":' * 21 + "1" + "}" * 21]
)
def test_deep_nesting_is_refused(text: str) -> None:
    assert parse("[" * 20 + "]" * 20)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse(text)


def test_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"rounds": 3}')
    with pytest.raises(ValueError, match=r"summary\.json: rounds: "):
        read_record(tmp_path / "summary.json", Summary)


@pytest.mark.parametrize("text", ["x", "2026-11-28", "0001-01-01T00:00:00+2359", ""])
def test_a_start_began_at_some_time(text: str) -> None:
    start = {"world_size": 1, "device": "cpu", "host": "n1"}
    assert check(Start, {**start, "started": "2026-11-28T10:00:00+0000"})
    with pytest.raises(ValueError, match=r"^started: "):
        check(Start, {**start, "started": text})


def test_an_evaluation_of_another_checkpoint_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = {"checkpoint": "r00-e0001", "of": {}, "protocol": {}}
    for name in ("r00-e0001", "r01-e0001"):
        (tmp_path / name).mkdir()
        write_record(tmp_path / name / "knn.json", record, never)
    assert read_evaluation(tmp_path / "r00-e0001/knn.json") == record
    assert read_evaluation(tmp_path / "r01-e0001/knn.json") is None
    assert "r01-e0001/knn.json is left out: it is of checkpoint r00-e0001" in caplog.text


def test_damage_is_said_once_and_by_one_rank(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        say_damage("once is enough")
    monkeypatch.setenv("RANK", "1")
    say_damage("rank 0 says it")
    assert [record.message for record in caplog.records] == ["once is enough"]


@pytest.mark.parametrize("name", ["config.yaml", "lock", "checkpoints", "jobs/001", "logs/x.log"])
def test_a_link_in_a_run_folder_is_named(tmp_path: Path, name: str) -> None:
    check_inside(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to(tmp_path)
    with pytest.raises(NotOursError, match=f"{name} is a link, and a run has a "):
        check_inside(tmp_path)


def test_links_of_the_user_beside_them_are_his_own(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best").symlink_to(tmp_path)
    (tmp_path / "notes").symlink_to(tmp_path)
    check_inside(tmp_path)
