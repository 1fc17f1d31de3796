"""The rules of tests/suites.py: who may start a process, what may be skipped, what is quick."""

from __future__ import annotations

import importlib
import multiprocessing
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import suites

UNMARKED = "mark it with `whole_run`, or use the pool"


def test_a_test_without_the_mark_starts_no_program() -> None:
    with pytest.raises(pytest.fail.Exception, match=UNMARKED):
        subprocess.run([sys.executable, "-c", ""])


def test_a_test_without_the_mark_starts_no_process() -> None:
    with pytest.raises(pytest.fail.Exception, match=UNMARKED):
        multiprocessing.get_context("spawn").Process(target=print).start()


def test_light_programs_may_be_started() -> None:
    assert subprocess.run(["git", "--version"], capture_output=True).returncode == 0


@pytest.mark.parametrize("name", suites.WHOLE_RUNS_OF_MAKE_TEST)
def test_the_whole_runs_of_make_test_are_there(name: str) -> None:
    path, _, function = name.partition("::")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    assert module.pytestmark.name == "whole_run"
    assert callable(getattr(module, function))


def report_of(reason: str) -> Any:
    skipped = ("tests/test_it.py", 7, f"Skipped: {reason}")
    return SimpleNamespace(skipped=True, outcome="skipped", longrepr=skipped)


def judged(report: Any) -> Any:
    """What pytest is told of a report."""
    hook = suites.pytest_runtest_makereport()
    next(hook)
    with pytest.raises(StopIteration) as ended:
        hook.send(report)
    return ended.value.value


def test_only_what_a_machine_lacks_may_be_skipped() -> None:
    assert judged(report_of(suites.LACKS["root"])).outcome == "skipped"
    refused = judged(report_of("not today"))
    assert (refused.outcome, refused.longrepr) == ("failed", "skipped, though not today")


def test_what_was_not_tried_is_said_at_the_end() -> None:
    lines: list[str] = []
    reports = [report_of(suites.LACKS["chromium"]), report_of(suites.LACKS["chromium"])]
    reporter = SimpleNamespace(stats={"skipped": reports}, write_line=lines.append)
    suites.pytest_terminal_summary(reporter)
    assert lines == [
        "Not tried: 2 test(s). No browser looked at the pages; install Debian's package chromium."
    ]


def item_of(*marks: str, **parameters: object) -> Any:
    found = dict.fromkeys(marks, True)
    return SimpleNamespace(
        nodeid="tests/test_it.py::test_it",
        get_closest_marker=found.get,
        callspec=SimpleNamespace(params=parameters),
    )


def test_make_test_leaves_out_whole_runs_four_ranks_and_what_is_thorough() -> None:
    assert suites.is_slow(item_of("whole_run"))
    assert suites.is_slow(item_of("thorough"))
    assert suites.is_slow(item_of(size=4))
    assert not suites.is_slow(item_of(size=3))


def test_every_mark_of_a_suite_is_explained() -> None:
    said = Path("pyproject.toml").read_text()
    assert all(f'"{mark}: ' in said for mark in ("whole_run", "thorough", "timed", "nightly"))
