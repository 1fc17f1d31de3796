"""Show where the time of a step goes, as a table and as a trace for Chrome: `run.profile=true`."""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from and_dist.distributed.world import World
from and_dist.utils.output_folders import publish_files
from and_dist.utils.owned_files import NotOursError, starts_with, write_file
from and_dist.utils.step_phases import MARK, StepPhase

STEPS_BEFORE, STEPS = 10, 20
"""Steps that pass first, because they still allocate and choose kernels; and profiled steps."""
OPERATORS_SHOWN = 5
is_trace = starts_with(r'\{\s*"schemaVersion"')


class Shares(NamedTuple):
    """Holds the seconds of all profiled steps, of each phase, and of their slowest operators."""

    steps: int
    seconds: float
    by_part: dict[str, float]
    by_operator: dict[str, float]

    @property
    def elsewhere(self) -> float:
        """Return the seconds outside of all phases."""
        return self.seconds - sum(self.by_part.values())


class StepProfile:
    """Profiles some steps of one rank and writes RUN/profile/rank-N.txt and rank-N.json."""

    def __init__(self, folder: Path, world: World, is_wanted: bool) -> None:
        """Wait for the first steps to pass."""
        self.folder = folder / "profile"
        self._rank = world.rank
        self._is_on_gpu = world.device.type == "cuda"
        self._is_wanted = is_wanted
        self._passed = self._seen = 0
        self._profile: profile | None = None
        self._since = 0.0

    def end_of_step(self, steps_left: int, steps_per_epoch: int) -> str | None:
        """Count a step; return the table at the end of the last profiled one.

        Profiled steps lie in one epoch, if it has as many: work between epochs is no part of a
        step.
        """
        if not self._is_wanted:
            return None
        self._passed += 1
        if self._profile is not None:
            self._seen += 1
        elif self._passed >= STEPS_BEFORE and steps_left >= min(STEPS, steps_per_epoch - 1):
            self._begin()
        if self._seen == STEPS:
            self._is_wanted = False
            return self._end()
        return None

    def finish(self) -> str | None:
        """Return a message if training ends before all steps were profiled."""
        if not self._is_wanted:
            return None
        if self._profile is not None:
            self._profile.__exit__(None, None, None)
        return (
            f"run.profile: nothing written, it takes {STEPS_BEFORE} steps and then {STEPS} of one "
            f"epoch, and this start had {self._passed}"
        )

    def _begin(self) -> None:
        """Start torch's profiler."""
        # Without this, torch 2.15's profiler prints on every rank that there is no GPU.
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")
        activities = [ProfilerActivity.CPU]
        if self._is_on_gpu:
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._profile.__enter__()
        self._since = time.perf_counter()

    def _end(self) -> str:
        """Stop the profiler, write table and trace, and return the table."""
        seconds = time.perf_counter() - self._since
        assert self._profile is not None
        found, self._profile = self._profile, None
        found.__exit__(None, None, None)
        # The recorded events are untyped.
        events: Any = found.events()
        add_up = add_up_kernels if self._is_on_gpu else add_up_operators
        table = as_table(add_up(events, seconds), self._rank)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            trace, text = (self.folder / f"rank-{self._rank}.{kind}" for kind in ("json", "txt"))
            with publish_files({trace.name: trace}, is_trace) as folder:
                found.export_chrome_trace(str(folder / trace.name))
            write_file(text, table + "\n", starts_with(r"\d+ steps of rank \d+, "))
        except (OSError, RuntimeError, NotOursError) as error:
            # The failure of one rank alone: raising it would end the others' training.
            return f"{table}\nrun.profile: {self.folder} could not be written ({error})"
        return f"{table}\ntable and trace (chrome://tracing, ui.perfetto.dev): {self.folder}"


def add_up_operators(events: Iterable[Any], seconds: float) -> Shares:
    """Add up, on a CPU, the time in which a rank works on a phase."""
    by_part: dict[str, float] = dict.fromkeys(get_args(StepPhase), 0.0)
    by_operator: dict[str, float] = defaultdict(float)
    for event in events:
        if event.name.startswith(MARK):
            by_part[event.name.removeprefix(MARK)] += event.time_range.elapsed_us() / 1e6
        else:
            by_operator[event.name] += event.self_cpu_time_total / 1e6
    return Shares(STEPS, seconds, by_part, _slowest(by_operator))


def add_up_kernels(events: Iterable[Any], seconds: float) -> Shares:
    """Add up, on a GPU, the time of the kernels that were launched during a phase, on any thread.

    The backward pass has a thread of its own. Kernels that run side by side make phases overlap.
    """
    events = [event for event in events if event.device_type == DeviceType.CPU]
    marks = sorted(
        (event.time_range.start, event.time_range.end, event.name.removeprefix(MARK))
        for event in events
        if event.name.startswith(MARK)
    )
    by_part: dict[str, float] = dict.fromkeys(get_args(StepPhase), 0.0)
    by_kernel: dict[str, float] = defaultdict(float)
    for event in events:
        launched = event.time_range.start
        at = bisect_right(marks, (launched, float("inf"), "")) - 1
        for kernel in event.kernels:
            by_kernel[kernel.name] += kernel.duration / 1e6
            if at >= 0 and launched <= marks[at][1]:
                by_part[marks[at][2]] += kernel.duration / 1e6
    return Shares(STEPS, seconds, by_part, _slowest(by_kernel))


def _slowest(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the operators that take the most time."""
    return dict(sorted(seconds.items(), key=lambda item: -item[1])[:OPERATORS_SHOWN])


def as_table(found: Shares, rank: int) -> str:
    """Return the table as text."""
    per_step = found.seconds / found.steps
    lines = [f"{found.steps} steps of rank {rank}, {1000 * per_step:.2f} ms each"]
    for name, seconds in {**found.by_part, "elsewhere": found.elsewhere}.items():
        lines.append(_line(name, seconds, found))
    lines.append("the operators or kernels that take longest, on all threads")
    lines += [_line(f"  {name}", seconds, found) for name, seconds in found.by_operator.items()]
    return "\n".join(lines)


def _line(name: str, seconds: float, found: Shares) -> str:
    """Return one line of the table."""
    share = f"{seconds / found.seconds:6.1%}"
    return f"{name[:44]:44} {1000 * seconds / found.steps:9.3f} ms {share}"
