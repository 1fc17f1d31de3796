"""Copies of the project in which mutants are tried, several side by side."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import NamedTuple, TypeVar

from tests.mutants.maker import Mutant
from tests.mutants.trial_server import TIMED_OUT

NOT_COPIED = (".git", ".venv", "runs", "data", "artefacts", "__pycache__", ".*_cache", "*.egg-info")
PASSED, FAILED = 0, 1
SETTINGS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""A process with threads cannot be forked safely."""
T = TypeVar("T")
R = TypeVar("R")


class Outcome(NamedTuple):
    """Holds what the tests said of a copy: "passed", "failed", "timed out" or "broken"."""

    what: str
    seconds: float
    work: float
    """CPU seconds."""
    test: str
    """The first test that failed, where one has."""
    log: str

    @property
    def is_caught(self) -> bool:
        return self.what != "passed"


class Bench:
    """One copy of the project, with a server that runs its tests."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self._copy = root, folder / "copy"
        self._log, self._scratch = folder / "log", folder / "scratch"
        shutil.copytree(root, self._copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.trial_server"],
            cwd=self._copy,
            env={**os.environ, **SETTINGS, "PYTHONPATH": str(self._copy)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.terminate()
        self._server.wait()

    def run_tests(self, tests: Iterable[str], seconds: float, forks: bool = True) -> Outcome:
        """Run tests of the copy as it is, until one fails or they have taken these CPU seconds."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        arguments = [f"--basetemp={self._scratch}", *tests]
        trial = {"tests": arguments, "log": str(self._log), "seconds": seconds, "forks": forks}
        self._server.stdin.write(json.dumps(trial) + "\n")
        self._server.stdin.flush()
        reply = json.loads(self._server.stdout.readline())
        log = self._log.read_text(errors="replace")
        what, test = _name_of(reply["status"]), _first_failed(log)
        return Outcome(what, reply["seconds"], reply["work"], test, log)

    @contextmanager
    def change(self, mutant: Mutant) -> Iterator[None]:
        """Hold the copy changed for a while."""
        file = self._copy / mutant.file
        before = file.read_bytes()
        after = mutant.apply(before)
        ast.parse(after)  # no text but a program counts as a mutant
        try:
            self._write(file, after)
            yield
        finally:
            self._write(file, before)

    @staticmethod
    def _write(file: Path, content: bytes) -> None:
        """Python takes compiled code for current that is of the same second and size."""
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
            compiled.unlink()
        file.write_bytes(content)


def _name_of(status: int | str) -> str:
    if status == TIMED_OUT:
        return "timed out"
    return {PASSED: "passed", FAILED: "failed"}.get(int(status), "broken")


def _first_failed(log: str) -> str:
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", log, re.MULTILINE)
    return found.group(1) if found else ""


class Workshop:
    """Some benches, that take one piece of work after the other."""

    def __init__(self, root: Path, jobs: int) -> None:
        self._root, self._jobs = root, jobs
        self._free: SimpleQueue[Bench] = SimpleQueue()
        self._stack = ExitStack()

    def __enter__(self) -> Workshop:
        folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="mutants-")))
        for number in range(self._jobs):
            bench = Bench(self._root, folder / str(number))
            self._free.put(self._stack.enter_context(bench))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def each(self, work: Callable[[Bench, T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
        """Yield what came of every item, in the order in which they are done."""

        def take(item: T) -> R:
            bench = self._free.get()
            try:
                return work(bench, item)
            finally:
                self._free.put(bench)

        pool = ThreadPoolExecutor(self._jobs)
        try:
            futures = {pool.submit(take, item): item for item in items}
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
