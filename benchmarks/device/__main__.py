"""Turn minutes of one NVIDIA GPU into figures.

    python -m benchmarks.device --part 1 [--part 2 ...] [--out FOLDER] [--json FILE] [--site FOLDER]
    python -m benchmarks.device --table FILE

in the root of the repository. Each part takes at most eight minutes. Part 1 needs torch and Triton
alone; the others need all that and_dist does, some of which may lie unpacked in --site. Every step
has a limit in seconds and a log in --out. A step that fails or runs out of time ends nothing, and a
part that is begun again leaves out the steps that have passed. Figures, hardware, driver, versions
and how each step ended go into --json after every step; --table prints them for the README.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.device.record import Record, add_step, open_record, write_record
from benchmarks.device.steps import PARTS, Step, limit_of, rows_of
from benchmarks.device.table import as_table

PASSED = "passed"


class Battery:
    """Runs steps in one folder, and keeps one record."""

    def __init__(self, out: Path, file: Path, site: Path, device: str) -> None:
        """Take up the record that is there; raise ValueError if it is of another machine."""
        out.mkdir(parents=True, exist_ok=True)
        self._out, self._file, self._site, self._device = out.resolve(), file, site, device
        self._record: Record = open_record(file, device)

    def run(self, part: int, again: bool) -> list[str]:
        """Run the steps of a part that have not passed, and return the names of those that fail."""
        for row in rows_of(part):
            wanted = tuple(step for step in row if again or not self._has_passed(step))
            if self._device == "cpu":
                wanted = tuple(step for step in wanted if step.runs_on_cpu)
            self._run_row(wanted)
        names = [step.name for step in PARTS[part] if step.name in self._record["steps"]]
        for name in names:
            ended = self._record["steps"][name]
            print(f"{name:16} {ended['how']:24} {ended['seconds']:6.1f} s")
        return [name for name in names if self._record["steps"][name]["how"] != PASSED]

    def _has_passed(self, step: Step) -> bool:
        """Return whether a step has passed before."""
        return bool(self._record["steps"].get(step.name, {}).get("how") == PASSED)

    def _run_row(self, row: Sequence[Step]) -> None:
        """Run steps side by side, each on a share of the cores, and record them as they end."""
        cores = sorted(os.sched_getaffinity(0))
        shares = [cores[at :: len(row)] or cores for at in range(len(row))]
        begun = time.monotonic()
        running = [
            (step, self._start(step, share)) for step, share in zip(row, shares, strict=True)
        ]
        for step, process in running:
            how = _wait(process, begun + step.limit_s, step.limit_s)
            self._show(step, how)
            figures = self._out / f"{step.name}.json"
            add_step(self._record, step.name, how, time.monotonic() - begun, figures)
            write_record(self._record, self._file)

    def _start(self, step: Step, cores: Sequence[int]) -> subprocess.Popen[bytes]:
        """Start a step in a process group of its own, with its log."""
        site = self._site.resolve()
        names = {"out": self._out, "site": site, "device": self._device}
        words = [word.format(**names) for word in step.command]
        if step.has_figures:
            words += ["--json", str(self._out / f"{step.name}.json")]
        environment = os.environ | {
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join((str(site), str(Path.cwd()))),
            # Hypothesis keeps its files out of the tree.
            "HYPOTHESIS_STORAGE_DIRECTORY": str(self._out / "hypothesis"),
            **{name: value.format(**names) for name, value in step.environment.items()},
        }
        with (self._out / f"{step.name}.log").open("wb") as log:
            process = subprocess.Popen(
                words,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        os.sched_setaffinity(process.pid, cores)  # before it has started threads or processes
        return process

    def _show(self, step: Step, how: str) -> None:
        """Print how a step ended, and the last lines of its log."""
        text = (self._out / f"{step.name}.log").read_text(errors="replace")
        print(f"=== {step.name}: {how} ({step.proves})")
        for line in text.splitlines()[-step.lines :]:
            print(line[:220], flush=True)


def _wait(process: subprocess.Popen[bytes], deadline: float, limit_s: int) -> str:
    """Return how a step ended; end it, with all that it started, at its deadline."""
    try:
        status = process.wait(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"ran out of its {limit_s} s"
    return PASSED if status == 0 else f"failed with status {status}"


def say_what_would_run(parts: Sequence[int]) -> None:
    """Print in one line what a GPU would be used for."""
    told = "; ".join(
        f"part {part} would run {', '.join(step.name for step in PARTS[part])} "
        f"({limit_of(part)} s at most)"
        for part in parts
    )
    print(f"no NVIDIA GPU here: {told}")


def main() -> int:
    """Run the parts that are asked for, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.device",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", type=int, choices=sorted(PARTS), action="append")
    parser.add_argument("--out", type=Path, default=Path("artefacts/device"), help="for logs")
    parser.add_argument("--json", type=Path, help="the record; FOLDER/device.json without it")
    parser.add_argument("--site", type=Path, default=Path("site"), help="packages, unpacked")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--again", action="store_true", help="run also what has passed")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print a record for the README")
    given = parser.parse_args()
    if given.table is not None:
        try:
            print(as_table(given.table))
        except ValueError as error:
            raise SystemExit(str(error)) from None
        return 0
    parts = sorted(set(given.part or PARTS))
    if not Path("benchmarks/device/steps.py").exists():
        raise SystemExit("the battery runs in the root of the repository")
    if given.device == "cuda" and not torch.cuda.is_available():
        say_what_would_run(parts)
        return 0
    try:
        file = given.json or given.out / "device.json"
        battery = Battery(given.out, file, given.site, given.device)
        failed = [name for part in parts for name in battery.run(part, given.again)]
    except ValueError as error:
        raise SystemExit(str(error)) from None
    print(f"failed: {', '.join(failed) or 'nothing'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
