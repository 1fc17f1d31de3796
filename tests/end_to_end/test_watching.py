"""What a run shows while it trains: in a terminal, in a log, as JSON, or nothing."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import time
from pathlib import Path

import pytest

from and_dist.runs.metrics_file import stream
from slurm.testcluster.cluster import PATIENCE
from tests.conftest import Cli
from tests.end_to_end.processes import DEBUG, finish, start, start_ranks, train

pytestmark = pytest.mark.whole_run

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LONGER = ("curriculum.epochs=8", "optim.milestones=[6]", "evaluation.every=2")


def seen_in_terminal(*arguments: object, columns: int) -> str:
    """All that is drawn, one frame over the other."""
    ours, theirs = pty.openpty()
    process = start(*arguments, terminal=theirs, COLUMNS=columns, LINES=40, TERM="xterm")
    os.close(theirs)
    drawn, deadline = b"", time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.5)[0]:
            try:
                drawn += os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert process.wait(PATIENCE) == 0, drawn.decode()
    return drawn.decode()


def test_a_terminal_shows_all_there_is_to_know(tmp_path: Path) -> None:
    drawn = seen_in_terminal(*DEBUG, f"run.root={tmp_path}", *LONGER, columns=110)
    frames = [ESCAPES.sub("", frame) for frame in re.split(r"(?:\x1b\[1A\x1b\[2K)+", drawn)]
    whole = [frame for frame in frames if "of run" in frame or re.search(r"run\s+[━╸╺ ]+\d", frame)]
    assert len(whole) > 5
    last = whole[-1]
    figures = r"loss \d+\.\d{3}  lr 0\.03  [\d,]+ images/s  \d+ % waiting for data  \d\.\d GB"
    assert any(re.search(figures, frame) for frame in whole)
    for expected in (
        r"debug  round 2/2 done",
        r"kNN \d+\.\d %  saved r02-e000\d, 0:\d\d ago",
        r"epoch .*100 % .*0:00 left",
        r"round .*100 % .*0:00 left",
        r"run .*100 % .*0:00 left",
    ):
        assert re.search(expected, last), (expected, last)
    places = {place for frame in whole for place in re.findall(r"round \d/2 epoch \d", frame)}
    assert len(places) > 2  # of 24: it is drawn four times a second, and epochs take less
    assert "round 0 done: 0 anchors" in drawn


def test_a_run_that_goes_on_shows_what_it_goes_on_from(tmp_path: Path) -> None:
    command = (*DEBUG, f"run.root={tmp_path}")
    finish(start(*command))
    drawn = ESCAPES.sub("", seen_in_terminal(*command, columns=110))
    assert re.search(r"debug  round 2/2 done\s+kNN \d+\.\d %  saved r02-e000\d, 0:\d\d ago", drawn)


def test_a_narrow_terminal_is_enough(tmp_path: Path) -> None:
    drawn = seen_in_terminal(*DEBUG, f"run.root={tmp_path}", columns=40)
    frames = [ESCAPES.sub("", frame) for frame in re.split(r"(?:\x1b\[1A\x1b\[2K)+", drawn)]
    screens = [frame for frame in frames if "epoch ━" in frame]
    bars = [line for frame in screens for line in frame.splitlines() if " left" in line]
    assert len(bars) >= 3 * len(screens) > 0
    assert max(map(len, bars)) <= 40


def test_a_log_has_lines_without_colour(tmp_path: Path) -> None:
    status, output = finish(start(*DEBUG, f"run.root={tmp_path}"))
    assert status == 0
    assert "\x1b" not in output
    assert output.startswith("debug: loading shapes/train\ndebug: 200 images")
    assert "round 2 done: 200 anchors" in output


def test_quiet_says_nothing(tmp_path: Path) -> None:
    status, output = finish(start(*DEBUG, "--quiet", f"run.root={tmp_path}"))
    assert (status, output) == (0, "")
    assert (tmp_path / "debug" / "summary.json").exists()


def test_quiet_still_says_what_is_wrong(cli: Cli) -> None:
    status, shown, said = cli(*DEBUG, "--quiet", "optim.lr=-1")
    assert (status, shown) == (2, "")
    assert "optim.lr" in said


def test_json_is_what_metrics_jsonl_takes(tmp_path: Path) -> None:
    status, output = finish(start(*DEBUG, "--json", f"run.root={tmp_path}"))
    assert status == 0
    shown = [json.loads(line) for line in output.splitlines()]
    messages = [record for record in shown if record["event"] == "message"]
    assert any("200 images" in record["text"] for record in messages)
    rest = [record for record in shown if record["event"] != "message"]
    assert rest == list(stream(tmp_path / "debug" / "metrics.jsonl"))


def test_other_ranks_say_nothing(tmp_path: Path) -> None:
    first, second = start_ranks(2, *DEBUG, f"run.root={tmp_path}", "--json")
    assert finish(first)[1]
    assert finish(second) == (0, "")


def test_quiet_and_json_exclude_each_other(cli: Cli) -> None:
    status, _, said = cli(*DEBUG, "--quiet", "--json")
    assert (status, said) == (2, "and-dist: say either --quiet or --json\n")


def test_the_readme_says_what_metrics_jsonl_holds(tmp_path: Path) -> None:
    """Events and keys of a run, with a batch that made no number, against the table."""
    table: dict[str, set[str]] = {}
    rows = re.findall(r"^\| (`\w+`.*?) \| (.*) \|$", Path("docs/runs.md").read_text(), re.MULTILINE)
    for names, keys in rows:
        stated = set(re.findall(r"`(\w+)`", keys))
        table |= dict.fromkeys(re.findall(r"`(\w+)`", names), stated)
    status, output = finish(start(*DEBUG, f"run.root={tmp_path}"))
    assert status == 0, output
    seen = {
        r["event"]: set(r) - {"event", "time"} for r in stream(tmp_path / "debug/metrics.jsonl")
    }
    assert seen.keys() == {
        "baselines",
        "step",
        "epoch",
        "discovery",
        "round",
        "checkpoint",
        "goodput",
    }
    for event, keys in seen.items():
        assert keys == table[event], event
    assert table["rolled_back"] == table["non_finite"] == {"round", "epoch", "step", "rows"}


def test_a_profile_says_where_a_step_spends_its_time(tmp_path: Path) -> None:
    """Of every rank, whose parts add up to the step; and a trace that Chrome can read."""
    options = (f"run.root={tmp_path}", *LONGER, "run.profile=true")
    ends = [finish(rank) for rank in start_ranks(2, *DEBUG, *options)]
    assert all(status == 0 and "Error" not in said for status, said in ends), ends
    assert "table and trace" in ends[0][1]
    for rank in range(2):
        table = (tmp_path / "debug/profile" / f"rank-{rank}.txt").read_text()
        assert table.startswith(f"20 steps of rank {rank}, ")
        line = re.compile(r"^([a-z][\w, -]+?) +(\d+\.\d{3}) ms +(\d+\.\d)%$", re.MULTILINE)
        shares = {name: float(share) for name, _, share in line.findall(table)}
        assert abs(sum(shares.values()) - 100) < 1, shares
        for name in ("waiting for images", "encoder, forward", "partition", "backward", "bank"):
            assert shares[name] > 0, shares
        assert shares["elsewhere"] < 60, shares  # 1 % where nothing else runs
        trace = json.loads((tmp_path / "debug/profile" / f"rank-{rank}.json").read_text())
        marks = [event["name"] for event in trace["traceEvents"]].count("and-dist: backward")
        assert marks >= 20


def test_a_run_too_short_for_a_profile_says_so(tmp_path: Path) -> None:
    options = ("curriculum.rounds=0", "method=instance", "curriculum.epochs=1", "run.profile=true")
    said = train(f"run.root={tmp_path}", *options, "optim.milestones=[1]")
    assert "it takes 10 steps and then 20 of one epoch, and this start had 5" in said
    assert not (tmp_path / "debug/profile").exists()
