"""Run the battery with small steps in place of its own, and look at its table and record."""

from __future__ import annotations

import json
import sys
import time
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare
from benchmarks.device import __main__ as battery
from benchmarks.device import record
from benchmarks.device.steps import MOST_SECONDS_OF_A_PART, PARTS, Step, limit_of, rows_of
from benchmarks.device.table import as_table

H100 = Path("benchmarks/results/gpu/h100.json")
STEPS = [step for part in PARTS.values() for step in part]
FIGURES = {
    "results": [{"name": "a", "seconds": [1.0], "median_s": 1.0, "work": 5, "unit": "images"}],
    "ratios": {"b": 2.0},
    "facts": {"c": "said"},
    "rates": {"gpu_copy_gb_s": 3.0},
}


def step(name: str, script: str, **more: Any) -> Step:
    """Return a step of a shell's commands, which also runs without a GPU."""
    given: dict[str, Any] = {"limit_s": 20, "proves": "something", "runs_on_cpu": True} | more
    return Step(name=name, command=("sh", "-c", script), **given)


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *steps: Step, again: bool = False) -> int:
    """Run steps as part 1 of a battery in a folder, and return its exit code."""
    monkeypatch.setitem(PARTS, 1, steps)
    more = ["--again"] * again
    arguments = ["--part", "1", "--device", "cpu", "--out", str(folder), *more]
    monkeypatch.setattr(sys, "argv", ["battery", *arguments])
    return battery.main()


def content_of(folder: Path) -> dict[str, Any]:
    """Return the record that a battery has written."""
    return dict(json.loads((folder / "device.json").read_text()))


@pytest.mark.parametrize("part", PARTS)
def test_a_part_takes_eight_minutes_at_most(part: int) -> None:
    assert limit_of(part) <= MOST_SECONDS_OF_A_PART
    assert [one for row in rows_of(part) for one in row] == list(PARTS[part])


def test_steps_have_names_of_their_own_and_commands_that_exist() -> None:
    names = [one.name for one in STEPS]
    assert len(set(names)) == len(names)
    words = [pair for one in STEPS for pair in pairwise(one.command)]
    modules = [module for option, module in words if option == "-m"]
    assert len(modules) >= len(STEPS)
    assert all(find_spec(module) for module in modules)


def test_without_a_gpu_it_says_in_one_line_what_it_would_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["battery", "--part", "3"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert battery.main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    wanted = "part 3 would run gpu, step_kernels, loader, discovery (410 s at most)"
    assert line == f"no NVIDIA GPU here: {wanted}"


def test_a_battery_goes_on_after_a_failure_and_leaves_out_what_has_passed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = tmp_path / "needed"
    steps = (
        step("counts", f"printf x >> {tmp_path}/count"),
        step("fails", f"echo why; test -e {needed}"),
        step("after", "echo reached"),
    )
    assert run(monkeypatch, tmp_path, *steps) == 1
    printed = capsys.readouterr().out
    assert "=== fails: failed with status 1 (something)\nwhy\n" in printed
    assert "reached" in printed
    assert printed.endswith("failed: fails\n")
    needed.touch()
    assert run(monkeypatch, tmp_path, *steps) == 0
    assert (tmp_path / "count").read_text() == "x"
    assert {one["how"] for one in content_of(tmp_path)["steps"].values()} == {"passed"}
    assert run(monkeypatch, tmp_path, *steps, again=True) == 0
    assert (tmp_path / "count").read_text() == "xx"


def test_a_step_is_ended_at_its_limit_with_all_that_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    sleeps = f"(sleep 2; touch {mark}) & wait"
    assert run(monkeypatch, tmp_path, step("sleeps", sleeps, limit_s=1)) == 1
    assert content_of(tmp_path)["steps"]["sleeps"]["how"] == "ran out of its 1 s"
    time.sleep(1.5)
    assert not mark.exists()


def test_steps_side_by_side_wait_for_each_other_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each of two looks for what the other writes, which it would never find after it."""
    here, there = tmp_path / "here", tmp_path / "there"
    waits = "touch {}; until test -e {}; do sleep 0.05; done"
    both = (
        step("one", waits.format(here, there), beside="both"),
        step("two", waits.format(there, here), beside="both"),
    )
    assert run(monkeypatch, tmp_path, *both) == 0


def test_figures_of_all_steps_are_one_record_that_compares(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A shell takes --json for its own name, and the file for its first argument. Braces are
    # doubled, because single ones are filled in.
    script = f"echo '{json.dumps(FIGURES)}' > $1".replace("{", "{{").replace("}", "}}")
    measures = step("measures", script, has_figures=True)
    assert run(monkeypatch, tmp_path, measures, step("other", script, has_figures=True)) == 0
    assert run(monkeypatch, tmp_path, measures, again=True) == 0
    found = content_of(tmp_path)
    assert sorted(result["name"] for result in found["results"]) == ["measures: a", "other: a"]
    assert found["ratios"] == {"measures: b": 2.0, "other: b": 2.0}
    assert found["facts"]["other: c"] == "said"
    assert found["machine"]["cores"]
    assert found["versions"]["torch"]
    file = str(tmp_path / "device.json")
    assert compare.main([file, file]) == 0
    assert "slower: nothing" in capsys.readouterr().out


def test_a_record_of_another_machine_is_not_added_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run(monkeypatch, tmp_path, step("one", "true")) == 0
    there = record.describe_machine() | {"gpu": "NVIDIA B200"}
    monkeypatch.setattr(record, "describe_machine", lambda: there)
    with pytest.raises(SystemExit, match="measured on cpu, and this is NVIDIA B200"):
        run(monkeypatch, tmp_path, step("one", "true"))
    (tmp_path / "device.json").write_text("[]")
    with pytest.raises(SystemExit, match="no record of this battery"):
        run(monkeypatch, tmp_path, step("one", "true"))


@pytest.mark.parametrize("content", [None, "no JSON", "[]", '{"results": []}'])
def test_a_table_of_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "other.json"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(sys, "argv", ["battery", "--table", str(file)])
    with pytest.raises(SystemExit, match=r"other\.json is no record of this battery"):
        battery.main()


def test_the_readme_has_the_table_of_the_record() -> None:
    readme = Path("README.md").read_text()
    table = as_table(H100)
    assert "| 256 queries over 1,281,167 rows | 0.355 ms (triton) |" in table
    assert all(line in readme for line in table.splitlines() if line.startswith("| "))
