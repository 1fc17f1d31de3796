"""Lines that a disk does not take wait, and none is lost, torn or written twice."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from and_dist.runs.metrics_file import MetricsFile, read_metrics
from and_dist.utils.disk_errors import DiskError
from and_dist.utils.seals import seal_line
from tests.end_to_end.processes import fill_up


def line(number: int) -> dict[str, object]:
    return {"event": "step", "time": 0.0, "step": number, "filling": "x" * 900}


def test_lines_wait_for_room(small_disk: Path) -> None:
    path = small_disk / "metrics.jsonl"
    metrics = MetricsFile(path, is_writer=True)
    metrics.write(line(0))
    fill_up(small_disk / "ballast")
    for number in range(1, 20):
        metrics.write(line(number))
    with pytest.raises(
        DiskError, match=r"metrics\.jsonl cannot be written: .* it takes .* 0 B left"
    ):
        metrics.flush()
    expected = sum(len(seal_line(line(number), number + 1)) for number in range(20))
    assert metrics.size() == (expected, 20)
    os.truncate(small_disk / "ballast", 0)
    metrics.flush()
    assert [json.loads(text)["step"] for text in path.read_text().splitlines()] == [*range(20)]
    assert path.stat().st_size == metrics.size()[0] == expected
    metrics.close()


def test_going_back_forgets_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps(
        {"event": "epoch", "time": 1.0, "round": 0, "epoch": 0, "loss": 1.0, "lr": 0.1}
    )
    path.write_text(f"{whole}\n" + '{"event": "st')
    metrics = MetricsFile(path, is_writer=True)
    assert metrics.go_back_to(len(whole) + 1).last_time == 1.0
    metrics.write({"event": "message", "time": 2.0})
    metrics.close()
    assert len(path.read_text().splitlines()) == 2
    assert [record["loss"] for record in read_metrics(path, "epoch")] == [1.0]
