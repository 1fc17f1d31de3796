"""Compare memory and step times that `and-dist plan` predicts with those of real ranks.

    python -m benchmarks.plan [--smoke] [--json FILE]

There are three sizes of job and worlds of 1, 2 and 4 ranks on this machine. The rates behind the
prediction are measured between the steps that it is compared with. Of rates and steps the least of
all measurements counts.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from and_dist.config.validation import build
from and_dist.method.partition_kernels import is_faster_in_bfloat16
from and_dist.planning.hardware import Hardware
from and_dist.planning.memory import footprint_of
from and_dist.planning.timing import pace_of
from and_dist.planning.workload import Job, Size
from benchmarks.common.harness import Benchmark, add_arguments
from benchmarks.common.measured_rates import (
    TEMPERATURE,
    RunSpec,
    Seconds,
    curves,
    links_here,
    merge_least,
    overhead_here,
    rates_here,
    rates_of,
    slowest,
)
from benchmarks.common.measured_runs import (
    Scene,
    busy_seconds,
    cpu_seconds_here,
    num_cores,
    peak_here,
    seconds_here,
)
from benchmarks.common.rank_pool import RankPool

WORLDS = (1, 2, 4)
TIMED = (Scene("tiny", 8_000, 256), Scene("small", 50_000, 64), Scene("tiny", 400_000, 64))
HELD = (
    Scene("tiny", 200_000, 64),
    Scene("cifar_alexnet", 50_000, 64),
    Scene("small", 500_000, 128),
)
EMPTY = Scene("tiny", 1_000, 64)
"""A job whose ranks hold next to nothing but programs."""
TOGETHER = Scene("tiny", 10_000, 128)
"""A job whose steps show how long ranks wait for each other and for a shared core."""
STEPS = 24
"""The number of steps, of which the fastest counts."""
COPY = ("checkpoint: copy of all",)


@dataclass(frozen=True)
class Compared:
    """Hold the predicted and measured bytes of a rank, or seconds of a step."""

    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Return the relative error of the prediction."""
        return self.predicted / self.measured - 1


@dataclass
class Looks:
    """Measure the machine's rates and real steps in turn, and keep the least of each."""

    scenes: Sequence[Scene]
    worlds: Sequence[int]
    rates: dict[int, Seconds] = field(default_factory=dict)
    """Seconds by the number of ranks that are busy at once, as they share memory and caches."""
    links: dict[int, Seconds] = field(default_factory=dict)
    steps: dict[tuple[Scene, int], float] = field(default_factory=dict)

    disturbed: float = 0.0
    """The share of the cores that other processes took during the last look."""

    def look(self, pool: RankPool, repeats: int = 4) -> None:
        """Measure rates and steps once more."""
        began, busy, ours = time.monotonic(), busy_seconds(), cpu_seconds_of(pool)
        self._look_at_parts(pool, repeats)
        self._look_at_steps(pool)
        others = busy_seconds() - busy - (cpu_seconds_of(pool) - ours)
        self.disturbed = max(0.0, others / (num_cores() * (time.monotonic() - began)))

    def _look_at_parts(self, pool: RankPool, repeats: int) -> None:
        images = {scene.encoder: set[int]() for scene in self.scenes}
        for scene in self.scenes:
            images[scene.encoder] |= {scene.batch_size // world for world in self.worlds}
        batches = sorted({scene.batch_size for scene in self.scenes})
        counts = sorted(set().union(*images.values()))
        by_encoder = {name: sorted(of) for name, of in images.items()}
        wanted = RunSpec(by_encoder, batches, counts, dtypes=("float32", "bfloat16"))
        parameters = [job_of(scene, 1).parameters for scene in self.scenes]
        overhead = pool.run(1, overhead_here, batches, 1, repeats)[0]
        for busy in {busy_ranks(world) for world in self.worlds}:
            found = slowest(pool.run(busy, rates_here, wanted, 1, repeats))
            self.rates[busy] = merge_least([self.rates.get(busy, {}), overhead, found])
        for world in self.worlds:
            if world > 1:
                links = slowest(pool.run(world, links_here, counts, parameters, 1, 4 * repeats))
                self.links[world] = merge_least([self.links.get(world, {}), links])

    def _look_at_steps(self, pool: RankPool) -> None:
        together = [(world, TOGETHER) for world in self.worlds if world > 1]
        for world, scene in [*itertools.product(self.worlds, self.scenes), *together]:
            with tempfile.TemporaryDirectory() as root:
                took = max(pool.run(world, seconds_here, scene, root, 1, STEPS))
            self.steps[scene, world] = min(took, self.steps.get((scene, world), took))

    def hardware(self, world: int) -> Hardware:
        """Return the rates as Hardware, with the time that ranks of such a world wait for each
        other."""
        found = self._without_waits(world)
        steps = {size: self.steps[TOGETHER, size] for size in self.worlds if 1 < size <= world}
        return found.model_copy(update=waits_of(found, steps))

    def _without_waits(self, world: int) -> Hardware:
        known = self.rates[busy_ranks(world)]
        loader = {name: s for name, s in known.items() if name.startswith("loader/")}
        others = {name: s for name, s in known.items() if name not in loader}
        rates = rates_of(others, RunSpec._field_defaults["rows"]) | UNUSED
        plain = {
            "name": "this machine",
            "source": "measured beside the steps",
            "kind": "cpu",
            "memory_gb": 1.0,
            "cores": num_cores(),
            "framework_mb": 0.0,
            "rates": {"1": rates},
            "links": {str(size): curves(found) for size, found in self.links.items()},
            "loader": {"pixels": curves(loader)["loader/pixels"]},
            "rounds_rows": is_faster_in_bfloat16(TEMPERATURE),
        }
        return build(Hardware, plain)

    def compare(self) -> dict[tuple[Scene, int], Compared]:
        """Return predicted and measured seconds of a step, by job and number of ranks."""
        compared = {}
        for world, scene in itertools.product(self.worlds, self.scenes):
            predicted = step_seconds(job_of(scene, world, self.hardware(world)))
            compared[scene, world] = Compared(predicted, self.steps[scene, world])
        return compared


def waits_of(hardware: Hardware, steps: Mapping[int, float], threads: int = 1) -> dict[str, float]:
    """Return the waits of Hardware: seconds beyond the prediction that TOGETHER's steps took."""
    waits: dict[str, float] = {}
    for ranks, measured in sorted(steps.items()):
        job = job_of(TOGETHER, ranks, hardware, threads)
        missing = measured - step_seconds(job)
        name = "waits"
        if job.crowding > 1:
            name, missing = "turns", (missing - waits.get("waits", 0)) / (job.crowding - 1)
        waits[name] = float(f"{max(0.0, missing):.4g}")
    return waits


def step_seconds(job: Job) -> float:
    """Return the predicted seconds of a step."""
    pace = pace_of(job)
    assert pace is not None
    return pace.step


def cpu_seconds_of(pool: RankPool) -> float:
    """Return the CPU seconds of the pool's ranks and of this process."""
    return time.process_time() + sum(pool.run(max(WORLDS), cpu_seconds_here))


def busy_ranks(world: int) -> int:
    """Return how many ranks run at once; others wait for a core."""
    return min(world, num_cores())


UNUSED = {
    "operations_per_s": {"float32": 1.0},
    "scan_operations_per_s": 1.0,
    "search_operations_per_s": 1.0,
}
"""Rates that predictions do not use here, since all encoders are measured."""


def job_of(scene: Scene, world: int, hardware: Hardware | None = None, threads: int = 1) -> Job:
    """Return the job as the prediction takes it."""
    config = scene.config("nowhere", threads)
    return Job(config, scene.num_rows, Size(1, world, num_cores()), hardware, "pixels")


def compare_memory(
    scenes: Sequence[Scene], worlds: Sequence[int]
) -> dict[tuple[Scene, int, str], Compared]:
    """Return predicted and measured bytes before the first checkpoint, and while one is written.

    Measured is the rank that holds most.
    """
    compared = {}
    for world in worlds:
        framework = framework_bytes(world)
        for scene in scenes:
            held, planned = _most_held(scene, world), _predicted(scene, world)
            for when, measured, parts in zip(("training", "saving"), held, planned, strict=True):
                compared[scene, world, when] = Compared(framework + parts, measured)
    return compared


def framework_bytes(world: int) -> float:
    """Return the bytes of a rank that holds nothing but programs."""
    return _most_held(EMPTY, world)[0] - _predicted(EMPTY, world)[0]


def _most_held(scene: Scene, world: int) -> tuple[float, float]:
    """Return the most bytes while training, and with a checkpoint, of ranks that are newly
    started."""
    pool = RankPool()
    try:
        with tempfile.TemporaryDirectory() as root:
            found = pool.run(world, peak_here, scene, root, 3)
    finally:
        pool.close()
    return max(opened for opened, _ in found), max(saved for _, saved in found)


def _predicted(scene: Scene, world: int) -> tuple[float, float]:
    """Return the same as it is predicted, without the framework's memory."""
    footprint = footprint_of(job_of(scene, world))
    copies = sum(map(footprint.bytes_of, COPY))
    start, training = (footprint.total(footprint.phase(name)) for name in ("start", "training"))
    copied = footprint.bytes_of(COPY[0])
    unsaved = max(start - copied, training - copies)
    return unsaved, max(unsaved, training)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    given = parser.parse_args()
    benchmark = Benchmark("plan")
    worlds = (1, 2) if given.smoke else WORLDS
    looks = Looks(TIMED[:1] if given.smoke else TIMED, worlds)
    pool = RankPool()
    for _ in range(1 if given.smoke else given.repeats):
        looks.look(pool)
    pool.close()
    for (scene, world), step in looks.compare().items():
        note = f"predicted {1e3 * step.predicted:.1f} ms, {step.error:+.0%}"
        name = f"{scene.name}, {world} rank(s)"
        benchmark.add(name, [step.measured], scene.batch_size, "images", notes=note)
        benchmark.facts[f"step of {name}"] = f"{1e3 * step.measured:.1f} ms, {note}"
    held = compare_memory(HELD[:1] if given.smoke else HELD, worlds)
    for (scene, world, when), memory in held.items():
        benchmark.facts[f"{when}, {scene.name}, {world} rank(s)"] = (
            f"{memory.measured / 1e6:,.0f} MB, predicted {memory.predicted / 1e6:,.0f} MB, "
            f"{memory.error:+.0%}"
        )
    benchmark.finish(given.json)


if __name__ == "__main__":
    main()
