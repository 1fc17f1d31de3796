"""Lines that are bent, lost, repeated or torn: readers leave them out and say where they stood."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from and_dist.runs.metrics_file import Forgotten, MetricsFile, read_last, stream

Lines = list[bytes]


def step(number: int) -> dict[str, Any]:
    place = {"round": 0, "epoch": 0, "step": number}
    return {"event": "step", "time": 1.0, **place, "loss": 2.5}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def write(path: Path, *steps: int) -> MetricsFile:
    file = MetricsFile(path, is_writer=True)
    for number in steps:
        file.write(step(number))
    return file


def steps_of(path: Path) -> list[int]:
    return [record["step"] for record in stream(path)]


def bend(path: Path, change: Callable[[Lines], object]) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))


def test_lines_come_back_without_number_and_seal(path: Path) -> None:
    write(path, 1, 2).close()
    last = json.loads(path.read_bytes().splitlines()[-1])
    assert list(last)[-2:] == ["line", "crc"]
    assert last["line"] == 2
    (_, found) = stream(path)
    assert {key: found[key] for key in step(2)} == step(2)
    assert not {"line", "crc"} & found.keys()


@pytest.mark.parametrize(
    ("change", "left", "said"),
    [
        (lambda lines: lines.__setitem__(1, b"\0\xff\n"), [1, 3, 4], "1 line .* left out: line 2$"),
        (
            lambda lines: lines.__setitem__(2, lines[2].replace(b"2.5", b"2.4")),
            [1, 2, 4],
            "1 line .* is damaged and left out: line 3$",
        ),
        (lambda lines: lines.pop(1), [1, 3, 4], r"1 line of .*metrics\.jsonl is missing$"),
        (lambda lines: lines.insert(3, lines[0]), [1, 2, 3, 4], "left out: line 4$"),
        (lambda lines: lines.insert(0, lines.pop(2)), [3, 4], "2 lines .* left out: lines 2, 3$"),
        (
            lambda lines: lines.__setitem__(1, lines[1].replace(b'"crc"', b'"csc"')),
            [1, 3, 4],
            "left out: line 2$",
        ),
        (lambda lines: lines.append(b'{"event": "st'), [1, 2, 3, 4], ""),
        (lambda lines: lines.append(b'{"even'), [1, 2, 3, 4], ""),
        (lambda lines: lines.append(b"[["), [1, 2, 3, 4], "1 line .* left out: line 5$"),
        (lambda lines: lines.__setitem__(slice(None), [b"[" * 9000]), [], "left out: line 1$"),
    ],
)
def test_what_is_damaged_is_left_out_and_said(
    path: Path,
    change: Callable[[Lines], object],
    left: list[int],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write(path, 1, 2, 3, 4).close()
    bend(path, change)
    assert steps_of(path) == left
    assert bool(caplog.records) == bool(said)
    assert re.search(said, "\n".join(record.message for record in caplog.records), re.MULTILINE)


def test_many_damaged_lines_are_counted(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text("x\n" * 20 + json.dumps(step(1)) + "\n")
    assert steps_of(path) == [1]
    assert caplog.records[0].message == (
        f"20 lines of {path} are damaged and left out: lines 1, 2, 3, 4, 5, 6, 7, 8, ..."
    )


def test_an_endless_line_is_left_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("and_dist.runs.metrics_file.LONGEST_LINE", 300)
    path.write_text(" " * 1000 + "\n" + json.dumps(step(1)) + "\n" + " " * 1000)
    assert steps_of(path) == [1]


def test_the_last_line_of_a_kind_is_the_last_sound_one(path: Path) -> None:
    path.write_text(json.dumps(step(1)) + "\n" + '{"event": "step"}\n')
    assert read_last(path, ("step", "round"))[0]["step"]["step"] == 1
    write(path, 3, 4).close()
    bend(path, lambda lines: lines.__setitem__(-1, lines[-1].replace(b"2.5", b"2.4")))
    assert read_last(path, ("step", "round"))[0]["step"]["step"] == 3
    assert read_last(path, ("round",), ("step",))[1][0]["step"] == 1
    assert read_last(path, ("round",)) == ({}, [])


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (len, [1, 2]),
        (lambda lines: lines.__setitem__(0, lines[0].replace(b"2.5", b"2.4")), [2]),
        (lambda lines: lines.pop(0), [2]),
        (lambda lines: lines.insert(1, lines[0]), [1, 2]),
    ],
)
def test_going_back_keeps_the_lines_of_the_checkpoint(
    path: Path, change: Callable[[Lines], object], left: list[int]
) -> None:
    """Whatever became of them, the next lines follow, and none of those after it is left."""
    file = write(path, 1, 2)
    size = file.size()
    for number in (3, 4, 5):
        file.write(step(number))
    file.close()
    bend(path, change)
    file = MetricsFile(path, is_writer=True)
    assert file.go_back_to(*size) == Forgotten(5, 1.0, 1.0)
    file.write(step(3))
    file.close()
    assert steps_of(path) == [*left, 3]


def test_going_back_in_a_torn_file_says_that_more_was_done(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(path, 1, 2)
    size = file.size()
    file.write(step(3))
    file.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    file = MetricsFile(path, is_writer=True)
    assert file.go_back_to(*size).last_step == 2
    file.close()
    assert "metrics.jsonl ends within a line, so the run may have come further" in caplog.text
    assert steps_of(path) == [1, 2]


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines.pop(2),
        lambda lines: lines.__setitem__(2, lines[2].replace(b"2.5", b"2.4")),
    ],
)
def test_going_back_says_if_a_line_after_the_checkpoint_is_lost(
    path: Path, change: Callable[[Lines], object], caplog: pytest.LogCaptureFixture
) -> None:
    file = write(path, 1, 2)
    size = file.size()
    for number in (3, 4):
        file.write(step(number))
    file.close()
    bend(path, change)
    file = MetricsFile(path, is_writer=True)
    file.go_back_to(*size)
    file.close()
    assert "1 line of" in caplog.text
    assert "was damaged or lost, so it is not known how many steps are done" in caplog.text


def test_a_file_of_an_earlier_revision_is_continued(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text("".join(json.dumps(step(number)) + "\n" for number in (1, 2, 3)))
    size = len((json.dumps(step(1)) + "\n").encode()) * 2
    file = MetricsFile(path, is_writer=True)
    assert file.go_back_to(size).last_step == 3
    file.write(step(3))
    assert file.size()[1] == 3
    file.close()
    assert steps_of(path) == [1, 2, 3]
    assert not caplog.records


def test_a_file_that_lost_its_end_is_refused(path: Path) -> None:
    file = write(path, 1, 2)
    size = file.size()
    bend(path, lambda lines: lines.pop())
    with pytest.raises(RuntimeError, match=r"metrics\.jsonl has .* but had"):
        file.go_back_to(*size)
