"""Say which test belongs to which suite: `make test`, `make test-all` or `make nightly`.

`make test` leaves out what takes long: whole runs but three, worlds of four ranks, and what is
marked `thorough`. A test that starts a process needs the mark `whole_run`; ranks of the pool live
for a whole session and do not count. What a machine lacks is skipped and named at the end, and
nothing else is skipped.
"""

from __future__ import annotations

import multiprocessing.process
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures.process import _process_worker
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet

from benchmarks.common.rank_pool import SIZES

WHOLE_RUNS_OF_MAKE_TEST = (
    "tests/end_to_end/test_three_runs.py::test_a_run_of_two_nodes_learns_what_it_always_learned",
    "tests/end_to_end/test_three_runs.py::test_a_killed_rank_is_started_again",
    "tests/end_to_end/test_three_runs.py::test_a_run_has_a_report",
)
"""The runs through the launcher that everyone tries: a plain one, one killed, one with a report."""

LACKS = {
    "root": "only root mounts file systems and becomes another user; run the tests as root",
    "chromium": "no browser looked at the pages; install Debian's package chromium",
    "a GPU": "nothing ran on an NVIDIA GPU; run `make test-gpu` where there is one",
    "one GPU": "a machine of one GPU is needed; run `make test-gpu` with CUDA_VISIBLE_DEVICES=0",
    "a cluster": "no job ran on SLURM; run `make test-slurm` as root, with SLURM's packages",
}
"""Names what a machine may lack, and how to get it. Nothing else is a reason to skip a test."""

LIGHT_PROGRAMS = {"git", "mount", "nvidia-smi", "scontrol", "sh", "sinfo", "tar", "umount", "uname"}
"""Programs that take milliseconds, and so may be started by any test. So may the workers of a
ProcessPoolExecutor, with which images are prepared."""


def all_pairs(first: Sequence[Any], second: Sequence[Any]) -> list[ParameterSet]:
    """Give every pair as parameters; `make test` tries each value of both sides at least once."""
    return [
        pytest.param(a, b, marks=() if j % len(first) == i % len(second) else pytest.mark.thorough)
        for i, a in enumerate(first)
        for j, b in enumerate(second)
    ]


def skip_without(what: str) -> None:
    """Skip this test, because the machine lacks something of LACKS."""
    pytest.skip(LACKS[what])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out what `make test` leaves out")
    parser.addoption("--hold-seconds", action="store_true", help="hold the seconds of timed tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not asked for."""
    if config.getoption("--quick"):
        slow = [item for item in items if is_slow(item)]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def is_slow(item: pytest.Item) -> bool:
    """Return whether `make test` leaves a test out."""
    if item.get_closest_marker("whole_run"):
        return item.nodeid not in WHOLE_RUNS_OF_MAKE_TEST
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return bool(item.get_closest_marker("thorough")) or parameters.get("size") == max(SIZES)


class Guard:
    """Fails a test that starts a process and does not say so by its mark."""

    test = ""
    """The test that may start none; empty where there is none."""

    @classmethod
    @contextmanager
    def lowered(cls) -> Iterator[None]:
        """Let processes start that belong to no test."""
        test, cls.test = cls.test, ""
        try:
            yield
        finally:
            cls.test = test

    @classmethod
    def refuse(cls, program: str) -> None:
        """Fail the test under way, unless it may start this program."""
        if cls.test and Path(program).name not in LIGHT_PROGRAMS:
            pytest.fail(f"{cls.test} starts {program}: mark it with `whole_run`, or use the pool")


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Hear of every program that Python starts."""
    if event == "subprocess.Popen":
        executable, command, *_ = arguments
        Guard.refuse(str(executable or command[0]))
    elif event in ("os.fork", "os.posix_spawn", "os.exec"):
        Guard.refuse(event)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Watch a test and its fixtures."""
    Guard.test = "" if item.get_closest_marker("whole_run") else item.nodeid
    try:
        return (yield)
    finally:
        Guard.test = ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[pytest.TestReport]:
    """Fail a test that is skipped for another reason than what the machine lacks."""
    report = yield
    is_skipped = report.skipped and not hasattr(report, "wasxfail")
    if is_skipped and reason_of(report) not in LACKS.values():
        report.outcome, report.longrepr = "failed", f"skipped, though {reason_of(report)}"
    return report


def reason_of(report: pytest.TestReport) -> str:
    """Return why a test was skipped."""
    assert isinstance(report.longrepr, tuple)
    return report.longrepr[2].removeprefix("Skipped: ")


def pytest_configure() -> None:
    """Begin to watch."""
    sys.addaudithook(watch)
    begin = multiprocessing.process.BaseProcess.start

    def start(process: multiprocessing.process.BaseProcess) -> None:
        target = getattr(process, "_target", None)
        if target is not _process_worker:
            Guard.refuse(f"a process for {target}")
        begin(process)

    multiprocessing.process.BaseProcess.start = start  # type: ignore[method-assign]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was not tried, and how it could be."""
    skipped = terminalreporter.stats.get("skipped", [])
    for reason, count in Counter(map(reason_of, skipped)).items():
        terminalreporter.write_line(f"Not tried: {count} test(s). {reason[0].upper()}{reason[1:]}.")
