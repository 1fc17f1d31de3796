from __future__ import annotations

import io
from pathlib import Path

from launcher.logs import (
    Follower,
    failure_priority,
    list_ranks,
    read_failure,
    read_last_start,
    read_tail,
)

LOG = """\
--- 2026-01-01 start 0
Traceback (most recent call last):
  old
KeyError: 'old'
--- 2026-01-01 start 1
round 0
Traceback (most recent call last):
  first
During handling of the above exception, another exception occurred:
Traceback (most recent call last):
  second
KeyError: 'boom'
"""


def test_a_failure_is_the_last_traceback_of_the_last_start(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    log.write_text(LOG)
    assert read_failure(log) == [
        "Traceback (most recent call last):",
        "  second",
        "KeyError: 'boom'",
    ]
    assert read_last_start(log)[0] == "--- 2026-01-01 start 1"


def test_without_a_traceback_a_failure_is_what_was_said_last(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    log.write_text("--- start 0\n" + "\n".join(map(str, range(100))) + "\n")
    assert read_failure(log) == [str(n) for n in range(80, 100)]
    assert read_failure(tmp_path / "rank-1.log") == []


def test_a_follower_shows_whole_lines_once(tmp_path: Path) -> None:
    log, shown = tmp_path / "rank-0.log", io.StringIO()
    log.write_text("before\n")
    follower = Follower(log, shown)
    with log.open("a") as file:
        file.write("one\ntw")
        file.flush()
        follower.show_more()
        assert shown.getvalue() == "one\n"
        file.write("o\n")
    follower.show_more()
    follower.show_more()
    assert shown.getvalue() == "one\ntwo\n"


def test_a_follower_waits_for_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    shown = io.StringIO()
    follower = Follower(tmp_path / "rank-0.log", shown)
    follower.show_more()
    (tmp_path / "rank-0.log").write_text("first\n")
    follower.show_more()
    assert shown.getvalue() == "first\n"


def test_ranks_are_those_with_a_log(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for name in ("rank-10.log", "rank-2.log", "node-0.log", "rank-x.log"):
        (tmp_path / "logs" / name).write_text("a\nb\n")
    assert list_ranks(tmp_path) == [2, 10]
    assert read_tail(tmp_path / "logs" / "rank-2.log", 1) == ["b"]


def test_who_lost_a_connection_is_less_suspect_than_who_said_something_else(
    tmp_path: Path,
) -> None:
    (tmp_path / "logs").mkdir()
    said = {
        0: "and-dist: rank 0: Connection closed by peer [10.0.0.2]:1234\n",
        1: "and-dist: rank 1: No space left on device\n",
        2: LOG,
        3: "and-dist: rank 3: [gloo] Socket Timeout\n",
        4: "Traceback (most recent call last):\n  x\nand-dist: rank 4: Broken pipe\n",
    }
    for rank, text in said.items():
        (tmp_path / "logs" / f"rank-{rank}.log").write_text(text)
    assert sorted(said, key=failure_priority(tmp_path)) == [2, 1, 4, 0, 3]
    assert [rank for rank in said if failure_priority(tmp_path)(rank)[0]] == [0, 3, 4]
