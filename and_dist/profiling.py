"""`run.profile=true`: where the time of a step goes, as a table and as a trace for Chrome."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple, get_args

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from and_dist.parts import MARK, Part
from and_dist.world import World

STEPS_BEFORE, STEPS = 10, 20
"""Steps of a start that pass unseen, because they still allocate and choose; and those seen."""
OPERATORS_SHOWN = 5


class Shares(NamedTuple):
    """Seconds of all steps seen, of each part of them, and of their slowest operators."""

    steps: int
    seconds: float
    by_part: dict[str, float]
    by_operator: dict[str, float]

    @property
    def elsewhere(self) -> float:
        return self.seconds - sum(self.by_part.values())


class StepProfile:
    """Watches some steps of one rank and writes RUN/profile/rank-N.txt and rank-N.json."""

    def __init__(self, folder: Path, world: World, is_wanted: bool) -> None:
        self.folder = folder / "profile"
        self._rank = world.rank
        self._is_on_gpu = world.device.type == "cuda"
        self._is_wanted = is_wanted
        self._passed = 0
        self._profile: profile | None = None
        self._since = 0.0

    def end_of_step(self) -> str | None:
        """What was found, at the end of the last step that is seen."""
        if not self._is_wanted:
            return None
        self._passed += 1
        if self._passed == STEPS_BEFORE:
            self._begin()
        if self._passed == STEPS_BEFORE + STEPS:
            self._is_wanted = False
            return self._end()
        return None

    def finish(self) -> str | None:
        """What is to be said where training ends before all of its steps were seen."""
        if not self._is_wanted:
            return None
        if self._profile is not None:
            self._profile.__exit__(None, None, None)
        few = f"this start had {self._passed}"
        return f"run.profile: nothing written, it takes {STEPS_BEFORE + STEPS} steps and {few}"

    def _begin(self) -> None:
        # Else it says on every rank that there is no GPU.
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")
        activities = [ProfilerActivity.CPU]
        if self._is_on_gpu:
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._profile.__enter__()
        self._since = time.perf_counter()

    def _end(self) -> str:
        seconds = time.perf_counter() - self._since
        assert self._profile is not None
        self._profile.__exit__(None, None, None)
        self.folder.mkdir(parents=True, exist_ok=True)
        trace, table = (self.folder / f"rank-{self._rank}.{kind}" for kind in ("json", "txt"))
        self._profile.export_chrome_trace(str(trace))
        found = as_table(add_up(self._profile, seconds, self._is_on_gpu), self._rank)
        table.write_text(found + "\n")
        self._profile = None
        return f"{found}\ntable and trace (chrome://tracing, ui.perfetto.dev): {self.folder}"


def add_up(found: profile, seconds: float, is_on_gpu: bool) -> Shares:
    """Of a GPU the time in which it works on a part; of a CPU the time in which a rank does."""
    device = DeviceType.CUDA if is_on_gpu else DeviceType.CPU
    by_part: dict[str, float] = dict.fromkeys(get_args(Part), 0.0)
    by_operator: dict[str, float] = defaultdict(float)
    # The recorded events are untyped.
    events: Any = found.events()
    for event in events:
        if event.name.startswith(MARK) and event.device_type == device:
            by_part[event.name.removeprefix(MARK)] += event.time_range.elapsed_us() / 1e6
        elif not event.name.startswith(MARK):
            took = event.self_device_time_total if is_on_gpu else event.self_cpu_time_total
            by_operator[event.name] += took / 1e6
    slowest = sorted(by_operator.items(), key=lambda item: -item[1])[:OPERATORS_SHOWN]
    return Shares(STEPS, seconds, by_part, dict(slowest))


def as_table(found: Shares, rank: int) -> str:
    per_step = found.seconds / found.steps
    lines = [f"{found.steps} steps of rank {rank}, {1000 * per_step:.2f} ms each"]
    for name, seconds in {**found.by_part, "elsewhere": found.elsewhere}.items():
        lines.append(_line(name, seconds, found))
    lines.append("the operators that take longest, on all threads")
    lines += [_line(f"  {name}", seconds, found) for name, seconds in found.by_operator.items()]
    return "\n".join(lines)


def _line(name: str, seconds: float, found: Shares) -> str:
    share = f"{seconds / found.seconds:6.1%}"
    return f"{name[:44]:44} {1000 * seconds / found.steps:9.3f} ms {share}"
